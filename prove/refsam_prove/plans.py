"""Steps of `make prove`: plans of the large models, built by TensorRT-RTX without a GPU.

Graphs are written with random weights and not proven here; only what a builder makes of them
counts: precision warnings, fused attention, activation memory.
"""

from __future__ import annotations

import gc
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from refsam_engines.build import BuildOptions, GraphSource, build_plan
from refsam_engines.profiles import Sizes, profiles_for
from refsam_export.refsam.checkpoint import load_model
from refsam_export.refsam.programs import specs_of
from refsam_export.request import ExportRequest
from refsam_export.variants import ModelGraphs, Written, write_variants
from refsam_prove import Step
from refsam_prove.exports import SEED, say
from refsam_trt.backends.tensorrt.flavour import Flavour, open_flavour
from refsam_trt.contract.manifest import GraphEntry
from refsam_trt.contract.plan_manifest import GraphReport
from refsam_trt.contract.refsam import IMAGE_ENCODER

SIZES = Sizes(max_expressions=8)
_PRECISION = "fp16"


@dataclass(frozen=True)
class Bound:
    """What must hold of a preset's fp16 image encoder at one frame of 1024x1024."""

    num_fused_attention: int
    activation_bytes: int


BOUNDS = {"vitb": Bound(12, 150_000_000), "vith": Bound(32, 195_000_000)}
OFFICIAL_FORM = ("vitb",)
"""Presets whose image encoder is built with SAM's own attention too, for comparison."""


def plans(preset: str) -> dict[str, Any]:
    """Build the plans of a preset (`failures`: what does not hold)."""
    flavour = open_flavour("tensorrt-rtx")
    reports = _reports(flavour, preset, "augmented", None)
    record: dict[str, Any] = {
        "preset": preset,
        "precision": _PRECISION,
        "seed": SEED,
        "tensorrt_rtx": flavour.version,
        "graphs": msgspec.to_builtins(reports),
        "failures": failures(reports, BOUNDS[preset]),
    }
    if preset in OFFICIAL_FORM:
        official = _reports(flavour, preset, "reference", IMAGE_ENCODER)
        record["official_attention"] = msgspec.to_builtins(official)
        record["failures"] += official_failures(official)
    return record


def failures(reports: dict[str, GraphReport], bound: Bound) -> list[str]:
    """Return what does not hold, one line each."""
    lines = [
        f"{name}: {warning}"
        for name, report in reports.items()
        for warning in report.precision_warnings
    ]
    encoder = reports[IMAGE_ENCODER]
    fused = (encoder.num_fused_attention, encoder.num_attention)
    if fused != (bound.num_fused_attention, bound.num_fused_attention):
        lines.append(
            f"{IMAGE_ENCODER}: fused attention in {fused[0]} of {fused[1]} blocks, all of "
            f"{bound.num_fused_attention} expected"
        )
    if encoder.activation_bytes is None or encoder.activation_bytes > bound.activation_bytes:
        lines.append(
            f"{IMAGE_ENCODER}: {encoder.activation_bytes} bytes of activations, at most "
            f"{bound.activation_bytes} expected"
        )
    return lines


def official_failures(reports: dict[str, GraphReport]) -> list[str]:
    """Return what does not hold of SAM's own attention, which no TensorRT is known to fuse."""
    fused = reports[IMAGE_ENCODER].num_fused_attention
    if fused == 0:
        return []
    return [f"{IMAGE_ENCODER}: SAM's own attention fused in {fused} blocks, 0 expected"]


def _reports(
    flavour: Flavour, preset: str, attention: str, only: str | None
) -> dict[str, GraphReport]:
    """Write graphs with one form of attention and build their plans, or `only` that of one."""
    with tempfile.TemporaryDirectory() as scratch:
        written = _write(preset, attention, Path(scratch))
        gc.collect()  # the model
        (variant,) = written.variants.values()
        reports = {}
        for name, entry in variant.graphs.items():
            if only in (None, name):
                say(f"building {name}")
                report = build(flavour, written.files[entry.file], entry, SIZES)
                say(
                    f"{name}: fused attention in {report.num_fused_attention} of "
                    f"{report.num_attention}, {report.activation_bytes} bytes of activations, "
                    f"{len(report.precision_warnings)} warnings"
                )
                reports[name] = report
        return reports


def _write(preset: str, attention: str, folder: Path) -> Written:
    model = load_model(preset, random_init=SEED).model
    form = ExportRequest(preset, folder, attention=attention).form
    source, specs = ModelGraphs(lambda: model, form), specs_of(model, form.split)
    return write_variants(source, specs, form, (_PRECISION,), folder, say)


def build(flavour: Flavour, path: Path, entry: GraphEntry, sizes: Sizes) -> GraphReport:
    """Build the plan of a graph, beside it, and return what is known about it."""
    source = GraphSource(path, entry.spec, entry.precision, profiles_for(entry.spec, sizes))
    report = build_plan(flavour, source, BuildOptions(), path.with_suffix(".plan"))
    assert report is not None, "nobody stopped the build"
    return report


STEPS: dict[str, Step] = {f"plans-{preset}": partial(plans, preset) for preset in BOUNDS}
