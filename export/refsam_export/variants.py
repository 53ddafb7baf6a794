"""The graphs of a bundle, in every precision that was asked for, as ONNX files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from refsam_export.onnx.export import OPSET, export_graph
from refsam_export.onnx.flops import count_flops
from refsam_export.onnx.weight_storage import WeightStorage
from refsam_export.precision.policy import POLICIES, graph_precision
from refsam_export.precision.typed_program import typed_module
from refsam_export.refsam.graphs import build_graphs
from refsam_export.refsam.model.refsam import RefSam
from refsam_export.refsam.programs import LIMITS, Programs, specs_of
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


def write_variants(
    model: RefSam,
    programs: Programs,
    form: GraphForm,
    precisions: Sequence[str],
    folder: Path,
    report: Any,
) -> Written:
    """Write one variant per precision; graphs that two of them have in common are written once.

    Args:
        model: fp32.
        programs: traced graphs of the model, needed where a precision is not fp32.
        form: split, attention, rewrites and how weights of fp32 graphs are stored.
        precisions: of `refsam_export.precision.policy.PRECISIONS`.
        folder: where to write.
        report: called with one line per graph.
    """
    specs = specs_of(model, form.split)
    files: dict[str, Path] = {}
    entries: dict[str, dict[str, GraphEntry]] = {precision: {} for precision in precisions}
    for name, module in build_graphs(model, form.split, form.attention, form.rewrites).items():
        made: dict[str, GraphEntry] = {}
        for precision in precisions:
            actual = graph_precision(precision, name)
            if actual not in made:
                report(f"exporting {name} in {actual}")
                file = f"graphs/{form.variant(precision)}/{name}.onnx"
                path = folder / file
                path.parent.mkdir(parents=True, exist_ok=True)
                chosen = _in_precision(module, programs, name, actual)
                storage = form.weight_storage if actual == "fp32" else "fp32"
                counts = export_graph(chosen, specs[name], path, LIMITS, storage)
                made[actual] = graph_entry(file, path, specs[name], actual, counts)
                files[file] = path
                files[f"{file}.data"] = path.with_name(f"{path.name}.data")
            entries[precision][name] = made[actual]
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


def _in_precision(
    module: nn.Module, programs: Mapping[str, Any], name: str, precision: str
) -> nn.Module:
    policy = POLICIES.get(precision)
    return module if policy is None else typed_module(programs[name], policy)


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
