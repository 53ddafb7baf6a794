"""What a plan is made of: from the builder's log and the plan's bytes; from a GPU where one is.

What nothing tells is None. The count of fused attention is a heuristic, which was checked for the
versions of TensorRT-RTX listed here; other versions get None.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from refsam_engines.network import ARITHMETIC, LayerTypes
from refsam_trt.backends.tensorrt.flavour import Flavour
from refsam_trt.backends.tensorrt.log import TrtLog
from refsam_trt.contract.plan_manifest import GraphReport, PlanManifest

SHOWN_LAYERS = (*ARITHMETIC, "SOFTMAX", "NORMALIZATION")
"""Layers whose types are printed; the manifest has all."""

_FUSED_NAME = b"_gemm_mha_v2_params_t"
_NAMES_PER_BLOCK = {"1.7.1.116": 4}
"""Version of TensorRT-RTX -> occurrences of that name per fused attention block."""


def report_on(
    flavour: Flavour, layers: LayerTypes, log: TrtLog, plan: Path, num_engine_layers: int | None
) -> GraphReport:
    """Return what is known about a plan that was just built."""
    return GraphReport(
        num_layers=sum(count for types in layers.values() for count in types.values()),
        layers=layers,
        num_attention=sum(layers.get("SOFTMAX", {}).values()),
        num_fused_attention=count_fused_attention(flavour, plan),
        num_engine_layers=num_engine_layers,
        activation_bytes=log.number("Total Activation Memory"),
        weights_bytes=log.number("Total Weights Memory"),
        warnings=log.of("WARNING"),
        precision_warnings=log.precision_warnings,
    )


def count_fused_attention(flavour: Flavour, plan: Path) -> int | None:
    """Return how many attention blocks became one kernel; None where that is not known."""
    per_block = _NAMES_PER_BLOCK.get(flavour.version) if flavour.is_rtx else None
    if per_block is None:
        return None
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        count, at = 0, raw.find(_FUSED_NAME)
        while at >= 0:
            count, at = count + 1, raw.find(_FUSED_NAME, at + 1)
    blocks, rest = divmod(count, per_block)
    return None if rest else blocks


def report_lines(manifest: PlanManifest) -> list[str]:
    """Return what is known about the plans as text; `unknown` where nothing told."""
    builder = manifest.builder
    gpus = builder.compute_capabilities
    lines = [
        f"{builder.backend} {builder.version}, {builder.platform}, variant {manifest.variant}, for "
        f"compute capabilities {', '.join(gpus) if gpus else 'unknown'}"
    ]
    for name, entry in manifest.graphs.items():
        report = entry.report
        size_bytes = manifest.files[entry.file].size_bytes
        lines += [
            f"{name}: plan {_mb(size_bytes)}, weights {_mb(report.weights_bytes)}, activations "
            f"{_mb(report.activation_bytes)}",
            f"  {report.num_layers} layers, {_known(report.num_engine_layers)} in the plan; "
            f"fused attention in {_known(report.num_fused_attention)} of {report.num_attention}",
            f"  types: {_types(report)}",
            *(f"  warning: {text}" for text in report.warnings),
        ]
    return lines


def _types(report: GraphReport) -> str:
    listed = []
    for layer in SHOWN_LAYERS:
        counts = report.layers.get(layer, {})
        listed += [f"{count} {layer} {dtype}" for dtype, count in counts.items()]
    return ", ".join(listed)


def _known(number: int | None) -> str:
    return "unknown" if number is None else str(number)


def _mb(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else f"{size_bytes / 1e6:.1f} MB"
