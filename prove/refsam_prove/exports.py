"""Steps of `make prove` that export: parity of random weights, half precision on videos."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click

from refsam_bench.precision.half import HalfRequest, measure_half
from refsam_export.exporter import export_bundle
from refsam_export.request import ExportRequest, ExportResult
from refsam_prove import Step
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.bundle.shipped import bundle_folder
from refsam_trt.command.progress import Progress
from refsam_trt.errors import ParityError

SEED = 0
SHIPPED = "nano"
HALVES = ("fp16", "bf16")
NUM_VIDEOS = 200


def say(line: str) -> None:
    """Print what a step is doing."""
    click.echo(f"  {line}")


def export_random(preset: str, folder: Path, **options: Any) -> ExportResult:
    """Export random weights; `options` are fields of `ExportRequest`."""
    return export_bundle(ExportRequest(preset, folder, random_init=SEED, **options), say)


def export_shipped(shipped: Bundle, folder: Path, precisions: tuple[str, ...]) -> None:
    """Export the weights of the model that ships in other precisions; they go along."""
    request = ExportRequest(
        shipped.manifest.preset,
        folder,
        checkpoint=shipped.path(shipped.manifest.source or "source.safetensors"),
        precisions=precisions,
        include_source=True,
    )
    export_bundle(request, say)


def parity(preset: str, num_frames: int) -> dict[str, Any]:
    """Export with random weights in both splits; the figures of the manifest."""
    splits = {}
    for split in ("optimised", "baseline"):
        (splits[split],) = _parity(preset, num_frames, split=split).values()
    return {"preset": preset, "splits": splits}


def half_parity(preset: str, num_frames: int) -> dict[str, Any]:
    """Export with random weights in fp16 and bf16 (`failures`: what is out of bounds)."""
    try:
        return {"preset": preset, "variants": _parity(preset, num_frames, precisions=HALVES)}
    except ParityError as error:
        return {"preset": preset, "failures": [str(error)]}


def _parity(preset: str, num_frames: int, **options: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundle"
        return export_random(preset, folder, parity_frames=num_frames, **options).parity


def shipped_on_videos(precision: str) -> dict[str, Any]:
    """Judge the shipped weights in half on videos (`failures`: what is out of bounds)."""
    shipped = open_bundle(bundle_folder(SHIPPED))
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        export_shipped(shipped, bundle, (precision,))
        with Progress("refsam-bench prove", NUM_VIDEOS) as progress:
            judged = HalfRequest(bundle, precision, num_videos=NUM_VIDEOS)
            figures = measure_half(judged, progress.update, say)
    return {"shipped_bundle_id": shipped.bundle_id, **figures.to_json()}


STEPS: dict[str, Step] = {
    "parity-nano": partial(parity, "nano", 5),
    "parity-vitb": partial(parity, "vitb", 5),
    "half-nano": partial(half_parity, "nano", 5),
    "half-vitb": partial(half_parity, "vitb", 3),
    **{f"{precision}-videos-nano": partial(shipped_on_videos, precision) for precision in HALVES},
}
