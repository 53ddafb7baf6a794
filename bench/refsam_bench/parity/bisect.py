"""Where a bundle leaves the PyTorch reference: `refsam-bench parity --bisect`.

First the frame and the graph, each graph being fed with the reference's own tensors; then, in that
graph, the tensor. Inside a graph the reference is PyTorch too: the exported program of the graph's
module in the bundle's attention form, run operation by operation.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refsam_bench.parity.graph_search import GraphSearch, Origin, tensor_error
from refsam_bench.parity.graph_values import OnnxGraph, Polygraphy, TorchProgram
from refsam_bench.parity.reference_runs import GraphRun, reference_runs
from refsam_export.parity.figures import BOUNDS, NOT_FINITE
from refsam_export.refsam.checkpoint import LoadedModel
from refsam_export.refsam.graphs import build_graphs
from refsam_export.source import load_source
from refsam_trt.backends.base import Context
from refsam_trt.backends.select import AUTO, open_backend
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.errors import UsageError
from refsam_trt.session.variants import choose_variant

Report = Callable[[str], None]


@dataclass(frozen=True)
class Divergence:
    """Where a bundle first leaves the reference.

    `outputs` holds the relative error of every output of the graph; `origin` is None when the graph
    itself computes what its PyTorch form computes.
    """

    frame: int
    graph: str
    outputs: dict[str, float]
    origin: Origin | None


@dataclass(frozen=True)
class Bisection:
    """What the search found, `finding` in words; `divergence` is None when there is none."""

    bundle_id: str
    variant: str
    backend: str
    tolerance: float
    num_frames: int
    divergence: Divergence | None
    finding: str

    @property
    def passed(self) -> bool:
        """Whether nothing differs."""
        return self.divergence is None

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object, with `passed`."""
        return {**asdict(self), "passed": self.passed}


def bisect_parity(
    folder: Path,
    *,
    source: Path | None,
    variant: str | None,
    num_frames: int,
    tolerance: float | None,
    report: Report,
) -> Bisection:
    """Find the first frame, graph and tensor of a bundle that differ from the reference.

    PyTorch and the bundle's graphs are in memory together.

    Args:
        folder: the bundle.
        source: folder of the PyTorch weights; None takes those inside the bundle.
        variant: which graphs; None takes the bundle's default.
        num_frames: length of the chain.
        tolerance: the largest relative error that is no difference; None is parity's bound for the
            precision of the variant.
        report: called with one line per stage.

    Raises:
        MissingExtraError: Polygraphy is not installed.
        UsageError: the tolerance is not between 0 and 1.
    """
    if tolerance is not None and not 0 < tolerance < 1:
        raise UsageError(f"tolerance {tolerance}: expected a number between 0 and 1, such as 1e-4")
    polygraphy = Polygraphy.load()
    bundle = open_bundle(folder)
    name = choose_variant(bundle.manifest, variant)
    if tolerance is None:
        tolerance = BOUNDS[bundle.manifest.variants[name].precision].max_relative_error
    report("loading the PyTorch weights")
    loaded = load_source(bundle, source)
    runs = reference_runs(loaded, bundle.manifest, name, num_frames)
    with _LoadedGraphs(bundle, name) as graphs:
        diverging = _first_divergence(graphs, runs, tolerance, report)
    divergence = None
    finding = f"no divergence: every output of every graph agrees in {num_frames} frames"
    if diverging is not None:
        run, outputs = diverging
        report(f"exporting {run.graph} afresh from PyTorch")
        suspect = _Suspect(bundle, name, run, loaded, polygraphy)
        origin = suspect.origin(tolerance, report)
        divergence = Divergence(run.frame, run.graph, outputs, origin)
        why = _in_words(origin) if origin else suspect.explanation(tolerance, graphs.backend_name)
        finding = f"frame {run.frame}, {run.graph}: {why}{_other_versions(bundle.manifest.tools)}"
    return Bisection(
        bundle.bundle_id, name, graphs.backend_name, tolerance, num_frames, divergence, finding
    )


class _LoadedGraphs:
    """The bundle's graphs as a session runs them, each loaded when it is first needed."""

    def __init__(self, bundle: Bundle, variant: str) -> None:
        self._bundle = bundle
        self._entries = bundle.manifest.variants[variant].graphs
        self._backend = open_backend(AUTO)
        self._contexts: dict[str, Context] = {}
        self.backend_name = self._backend.name

    def __enter__(self) -> _LoadedGraphs:
        return self

    def __exit__(self, *exc: object) -> None:
        self._contexts.clear()
        self._backend.close()

    def errors(self, run: GraphRun) -> dict[str, float]:
        """Run a graph on the reference's inputs and return the error of each output."""
        backend, entry = self._backend, self._entries[run.graph]
        if run.graph not in self._contexts:
            path = self._bundle.verify_file(entry.file)
            self._contexts[run.graph] = backend.load(path, entry.spec).context()
        inputs = {name: backend.upload(value) for name, value in run.inputs.items()}
        outputs = {
            t.name: backend.empty(run.expected[t.name].shape, t.dtype) for t in entry.spec.outputs
        }
        self._contexts[run.graph].run(inputs, outputs)
        return {
            name: tensor_error(backend.download(buffer), run.expected[name])
            for name, buffer in outputs.items()
        }


def _first_divergence(
    graphs: _LoadedGraphs, runs: Iterable[GraphRun], tolerance: float, report: Report
) -> tuple[GraphRun, dict[str, float]] | None:
    for run in runs:
        report(f"frame {run.frame}: {run.graph}")
        errors = graphs.errors(run)
        if max(errors.values()) > tolerance:
            return run, errors
    return None


class _Suspect:
    """One diverging run, and the same graph made afresh from the PyTorch weights."""

    def __init__(
        self,
        bundle: Bundle,
        variant: str,
        run: GraphRun,
        loaded: LoadedModel,
        polygraphy: Polygraphy,
    ) -> None:
        manifest = bundle.manifest
        form, limits = manifest.variants[variant], manifest.limits
        split: Any = form.split
        entry = form.graphs[run.graph]
        self._run, self._form = run, f"{form.attention} attention, {split} split"
        self._graph = OnnxGraph(bundle.verify_file(entry.file), polygraphy)
        self._program = TorchProgram(
            build_graphs(loaded.model, split, form.attention, form.rewrites)[run.graph],
            entry.spec,
            {"M": limits.max_frames, "B": limits.max_expressions, "N": limits.max_words},
        )

    def origin(self, tolerance: float, report: Report) -> Origin | None:
        return GraphSearch(self._graph, self._program, self._run.inputs, tolerance, report).origin()

    def explanation(self, tolerance: float, backend_name: str) -> str:
        """Return why a graph may diverge although it computes what its PyTorch form computes."""
        expected = self._run.expected
        formed = self._program.values(list(expected), self._run.inputs)
        error = max(tensor_error(formed[name], expected[name]) for name in expected)
        if error > tolerance:
            return (
                f"the graph is what its PyTorch form ({self._form}) computes, but that form "
                f"differs from SAM's own by {error:.1e}: the rewrite is wrong, not the graph"
            )
        return (
            f"the graph agrees with PyTorch when its tensors are read one by one in ONNX Runtime; "
            f"as a whole, {backend_name} computes it otherwise (fused operators or its precision)"
        )


def _in_words(origin: Origin) -> str:
    module = f" of {origin.module}" if origin.module else ""
    error = f"relative error {origin.relative_error:.1e}, shape {list(origin.shape)}"
    if origin.relative_error == NOT_FINITE:
        error = f"not finite, or shape {list(origin.shape)} is not {list(origin.expected_shape)}"
    lines = [
        f"{origin.tensor} ({origin.op_type}{module}) is the first tensor that differs: {error}",
        f"last tensor that agrees: {origin.last_agreeing or 'none'}",
    ]
    for node in origin.nodes:
        weights = f", weights {', '.join(node.weights)}" if node.weights else ""
        lines.append(f"between them: {node.op_type} -> {node.tensor}{weights}")
    return "\n".join(lines)


def _other_versions(tools: Mapping[str, str]) -> str:
    """Return a warning if tensors of the same name may not be the same; the exporter names them."""
    here = {name: importlib.metadata.version(name) for name in ("torch", "onnxscript")}
    differing = [f"{n} {tools.get(n)}, here is {v}" for n, v in here.items() if tools.get(n) != v]
    if not differing:
        return ""
    return (
        f"\nthe bundle was exported with {'; '.join(differing)}: tensors of the same name may not "
        "be the same; repeat this with the versions of the bundle"
    )
