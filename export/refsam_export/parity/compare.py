"""Runs a bundle on the inputs of a written reference and states the differences.

Imports neither torch nor onnx, so the figures are those of the runtime that people embed.
As a program, `python -m refsam_export.parity.compare BUNDLE REFERENCE_FOLDER` prints JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

import refsam_trt
from refsam_export.parity.bounds import BOUNDS, Bounds
from refsam_trt.backends.base import Backend
from refsam_trt.backends.select import AUTO, open_backend
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.bundle.plans import Plans, plans_for
from refsam_trt.contract.manifest import Variant
from refsam_trt.contract.specs import GraphSpec, TensorSpec
from refsam_trt.errors import UsageError
from refsam_trt.image.postprocess import Postprocessor
from refsam_trt.image.preprocess import geometry
from refsam_trt.session.variants import choose_variant

TENSORS = "reference.safetensors"
RECORD = "reference.json"
MAX_RELATIVE_ERROR = BOUNDS["fp32"].max_relative_error
MIN_MASK_IOU = BOUNDS["fp32"].min_mask_iou
# The error of anything that is not finite: JSON has no infinity.
NOT_FINITE = sys.float_info.max


@dataclass(frozen=True)
class Parity:
    """Figures of one variant against the PyTorch reference, and the bounds of its precision.

    `graphs` holds the relative error of every output of every graph run alone; the chain's figures
    are the worst over frames and expressions, `chain` lists each.
    """

    variant: str
    precision: str
    backend: str
    num_frames: int
    num_tokens: list[int]
    graphs: dict[str, dict[str, float]]
    chain: list[dict[str, Any]]
    max_graph_error: float
    max_chain_error: float
    min_mask_iou: float
    mean_mask_iou: float
    bounds: Bounds

    @classmethod
    def of(
        cls,
        variant: str,
        precision: str,
        backend: str,
        record: Mapping[str, Any],
        graphs: dict[str, dict[str, float]],
        chain: list[dict[str, Any]],
    ) -> Parity:
        """Return the figures of graphs and chain; `record` is the reference's."""
        return cls(
            variant=variant,
            precision=precision,
            backend=backend,
            num_frames=record["num_frames"],
            num_tokens=record["num_tokens"],
            graphs=graphs,
            chain=chain,
            max_graph_error=max(max(errors.values()) for errors in graphs.values()),
            max_chain_error=max(row["logits_error"] for row in chain),
            min_mask_iou=min(row["mask_iou"] for row in chain),
            mean_mask_iou=float(np.mean([row["mask_iou"] for row in chain])),
            bounds=BOUNDS[precision],
        )

    @property
    def passed(self) -> bool:
        """Whether graphs and masks are within the bounds of the precision."""
        return (
            self.max_graph_error <= self.bounds.max_relative_error
            and self.min_mask_iou >= self.bounds.min_mask_iou
        )


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest absolute difference over the largest absolute expected value.

    `NOT_FINITE` if either holds a value that is not finite.
    """
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return NOT_FINITE
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max()) / scale


def mask_iou(found: np.ndarray, expected: np.ndarray) -> float:
    """Return intersection over union of two bool masks; 1 when both are empty."""
    union = int(np.logical_or(found, expected).sum())
    return int(np.logical_and(found, expected).sum()) / union if union else 1.0


def compare(
    folder: Path,
    reference: Path,
    variant: str | None = None,
    *,
    backend: str = AUTO,
    plans: Path | None = None,
) -> Parity:
    """Measure a bundle against a reference written by `parity.reference`.

    Args:
        folder: the bundle.
        reference: folder with the reference's tensors and record.
        variant: which variant; None takes the bundle's default.
        backend: that runs the graphs.
        plans: folder of `refsam-build`, whose plans run instead.

    Raises:
        UsageError: the reference is of another split than the variant.
        RefsamError: as of `refsam_trt.load`.
    """
    tensors = load_file(reference / TENSORS)
    record = json.loads((reference / RECORD).read_text(encoding="utf-8"))
    bundle = open_bundle(folder, verify="deferred")
    variant = choose_variant(bundle.manifest, variant)
    _check_reference(bundle.manifest.variants[variant], tensors)
    with refsam_trt.load(bundle, variant=variant, backend=backend, plans=plans) as engine:
        backend = engine.backend
        chain = _run_chain(engine, tensors, record)
    built = plans_for(bundle, plans, variant) if plans else None
    graphs = _run_graphs(bundle, variant, backend, tensors, built)
    precision = bundle.manifest.variants[variant].precision
    return Parity.of(variant, precision, backend, record, graphs, chain)


def _check_reference(variant: Variant, tensors: dict[str, np.ndarray]) -> None:
    needed = [
        f"{graph}.{side}.{tensor.name}"
        for graph, entry in variant.graphs.items()
        for side, group in (("in", entry.spec.inputs), ("out", entry.spec.outputs))
        for tensor in group
    ]
    if missing := [name for name in needed if name not in tensors]:
        raise UsageError(
            f"the reference lacks {', '.join(missing)}: it was written for another split; write it "
            f"for {variant.split!r}"
        )


def _run_graphs(
    bundle: Bundle,
    variant: str,
    backend_name: str,
    tensors: Mapping[str, np.ndarray],
    plans: Plans | None,
) -> dict[str, dict[str, float]]:
    backend = open_backend(backend_name, plans=plans)
    try:
        return {
            name: _graph_errors(
                backend,
                plans.plan(name) if plans else bundle.verify_file(entry.file),
                entry.spec,
                graph_calls(name, entry.spec, tensors, plans),
            )
            for name, entry in bundle.manifest.variants[variant].graphs.items()
        }
    finally:
        backend.close()


@dataclass(frozen=True)
class GraphCall:
    """Inputs of one call of a graph, and what the reference says of its outputs."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def graph_calls(
    name: str, spec: GraphSpec, tensors: Mapping[str, np.ndarray], plans: Plans | None = None
) -> Iterator[GraphCall]:
    """Yield the reference's inputs of a graph, in as many calls as the sizes of plans ask for.

    Args:
        name: of the graph.
        spec: its contract.
        tensors: of the reference.
        plans: that take so many rows at once; None takes all.
    """
    groups = {"in": spec.inputs, "out": spec.outputs}
    arrays = {
        side: {t.name: tensors[f"{name}.{side}.{t.name}"] for t in group}
        for side, group in groups.items()
    }
    num_rows = max((len(arrays["in"][t.name]) for t in spec.inputs if _has_rows(t)), default=1)
    step = _rows_at_once(name, spec, plans) or num_rows
    for start in range(0, num_rows, step):
        cut = {
            side: {
                t.name: arrays[side][t.name][start : start + step]
                if _has_rows(t)
                else arrays[side][t.name]
                for t in group
            }
            for side, group in groups.items()
        }
        yield GraphCall(cut["in"], cut["out"])


def _has_rows(tensor: TensorSpec) -> bool:
    return bool(tensor.dims) and isinstance(tensor.dims[0], str)


def _rows_at_once(name: str, spec: GraphSpec, plans: Plans | None) -> int | None:
    profiles = plans.manifest.graphs[name].profiles if plans else {}
    return min(
        (profiles[t.name].max[0] for t in spec.inputs if _has_rows(t) and t.name in profiles),
        default=None,
    )


def _graph_errors(
    backend: Backend, path: Path, spec: GraphSpec, calls: Iterator[GraphCall]
) -> dict[str, float]:
    context = backend.load(path, spec).context()
    errors: dict[str, float] = {}
    for call in calls:
        outputs = {t.name: backend.empty(call.outputs[t.name].shape, t.dtype) for t in spec.outputs}
        context.run({key: backend.upload(array) for key, array in call.inputs.items()}, outputs)
        for key, buffer in outputs.items():
            error = relative_error(backend.download(buffer), call.outputs[key])
            errors[key] = max(error, errors.get(key, 0.0))
    return errors


def _run_chain(
    engine: refsam_trt.Engine, tensors: dict[str, np.ndarray], record: dict[str, Any]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    order: dict[int, int] = {}
    low_res_hw = tensors["chain.0.0.low_res_logits"].shape[1:]
    frame_geometry = geometry(tensors["frames"].shape[1:3], engine.manifest.preprocess)
    postprocessor = Postprocessor(frame_geometry, low_res_hw)
    with engine.open_video() as video:
        for index, frame in enumerate(tensors["frames"]):
            for expression, first in enumerate(record["first_frames"]):
                if first == index:
                    order[video.add_expression(record["expressions"][expression])] = expression
            for result in video.step(frame):
                expression = order[result.expression_id]
                expected = tensors[f"chain.{expression}.{index}.low_res_logits"][0]
                expected_mask = postprocessor.logits(expected) > 0
                rows.append(
                    {
                        "frame": index,
                        "expression": expression,
                        "logits_error": relative_error(result.low_res_logits, expected),
                        "mask_iou": mask_iou(result.mask, expected_mask),
                        "coverage": float(expected_mask.mean()),
                    }
                )
    return rows


def main(arguments: list[str]) -> None:
    """Print the figures of BUNDLE against REFERENCE_FOLDER as one JSON object."""
    folder, reference, *variant = arguments
    found = compare(Path(folder), Path(reference), *variant)
    print(json.dumps({**asdict(found), "passed": found.passed}))


if __name__ == "__main__":
    main(sys.argv[1:])
