"""The graphs of a bundle, in every precision that was asked for, as ONNX files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from torch import nn

from refsam_export.files.work_folder import Stages, Unkept
from refsam_export.onnx.export import OPSET, export_graph
from refsam_export.onnx.flops import count_flops
from refsam_export.onnx.weight_storage import WeightStorage
from refsam_export.precision.policy import POLICIES, graph_precision
from refsam_export.precision.typed_program import typed_module
from refsam_export.refsam.graphs import build_graphs
from refsam_export.refsam.model.refsam import RefSam
from refsam_export.refsam.programs import LIMITS, Programs, trace_graphs
from refsam_trt.contract.manifest import GraphEntry, Variant
from refsam_trt.contract.precision import count_dtypes
from refsam_trt.contract.refsam import Split
from refsam_trt.contract.specs import GraphSpec
from refsam_trt.onnx_file.reader import summarise_onnx


@dataclass(frozen=True)
class GraphForm:
    """How the graphs of a bundle are spelled and stored, whatever their precision."""

    split: Split
    attention: str
    rewrites: tuple[str, ...]
    weight_storage: WeightStorage = "fp32"

    def variant(self, precision: str) -> str:
        """Return the name of the variant of a precision."""
        return f"{precision}-{self.attention}-{self.split}"


@dataclass(frozen=True)
class Written:
    """Variants by name, and their files: path in the bundle -> where it lies now."""

    variants: dict[str, Variant]
    files: dict[str, Path]


class ModelGraphs:
    """A model and the graphs of it, each made when it is first asked for.

    Args:
        load: returns the model, fp32.
        form: how graphs are spelled.
    """

    def __init__(self, load: Callable[[], RefSam], form: GraphForm) -> None:
        self._load, self._form = load, form

    @cached_property
    def model(self) -> RefSam:
        """The model."""
        return self._load()

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The module of each graph."""
        form = self._form
        return build_graphs(self.model, form.split, form.attention, form.rewrites)

    @cached_property
    def programs(self) -> Programs:
        """The traced program of each graph, which half precisions are made from."""
        form = self._form
        return trace_graphs(self.model, form.split, form.attention, form.rewrites)

    def forget_modules(self) -> None:
        """Let go of the graphs' own tensors, and of the model's as far as it does itself."""
        self.__dict__.pop("modules", None)

    def in_precision(self, graph: str, precision: str) -> nn.Module:
        """Return the module of a graph in a precision."""
        policy = POLICIES.get(precision)
        return self.modules[graph] if policy is None else typed_module(self.programs[graph], policy)


def write_variants(
    source: ModelGraphs,
    specs: Mapping[str, GraphSpec],
    form: GraphForm,
    precisions: Sequence[str],
    folder: Path,
    report: Callable[[str], None],
    stages: Stages | None = None,
) -> Written:
    """Write one variant per precision; graphs that two of them have in common are written once.

    Args:
        source: what graphs are made from.
        specs: contract of each graph.
        form: split, attention, rewrites and how weights of fp32 graphs are stored.
        precisions: of `refsam_export.precision.policy.PRECISIONS`.
        folder: where to write.
        report: called with one line per graph.
        stages: run the export of each graph; None runs them all.
    """
    stages = stages or Unkept()
    files: dict[str, Path] = {}
    entries: dict[str, dict[str, GraphEntry]] = {precision: {} for precision in precisions}
    for name, spec in specs.items():
        written: dict[str, GraphEntry] = {}
        for precision in precisions:
            actual = graph_precision(precision, name)
            if actual not in written:
                file = f"graphs/{form.variant(precision)}/{name}.onnx"
                parts = {file: folder / file, f"{file}.data": folder / f"{file}.data"}
                make = partial(_exported, source, form, name, spec, actual, file, folder, report)
                stage = f"graph {name} in {actual}"
                written[actual] = stages.run(stage, GraphEntry, [*parts.values()], make)
                files |= parts
            entries[precision][name] = written[actual]
    variants = {
        form.variant(precision): Variant(
            precision,
            form.attention,
            form.split,
            form.rewrites,
            OPSET,
            graphs,
            _storage(form, graphs),
        )
        for precision, graphs in entries.items()
    }
    return Written(variants, files)


def _exported(
    source: ModelGraphs,
    form: GraphForm,
    name: str,
    spec: GraphSpec,
    precision: str,
    file: str,
    folder: Path,
    report: Callable[[str], None],
) -> GraphEntry:
    module = source.in_precision(name, precision)
    report(f"exporting {name} in {precision}")
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    storage = form.weight_storage if precision == "fp32" else "fp32"
    counts = export_graph(module, spec, path, LIMITS, storage)
    return graph_entry(file, path, spec, precision, counts)


def graph_entry(
    file: str, path: Path, spec: GraphSpec, precision: str, node_types: dict[str, int]
) -> GraphEntry:
    """Return the manifest's entry of a graph that lies at `path` and will be `file` in the bundle.

    `node_types` is what `export_graph` returned.
    """
    summary = summarise_onnx(path)
    dtypes = count_dtypes(summary.typed_nodes)
    return GraphEntry(file, spec, precision, node_types, dtypes, count_flops(path, summary, spec))


def _storage(form: GraphForm, graphs: Mapping[str, GraphEntry]) -> str | None:
    is_fp16 = form.weight_storage == "fp16"
    return "fp16" if is_fp16 and any(e.precision == "fp32" for e in graphs.values()) else None
