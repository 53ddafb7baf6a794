"""Steps of `make prove` about half precision: random weights exported, trained ones on videos."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from refsam_bench.precision.half import HalfRequest, measure_half
from refsam_export.exporter import export_bundle
from refsam_export.request import ExportRequest
from refsam_prove import Step
from refsam_trt.bundle.open import open_bundle
from refsam_trt.bundle.shipped import bundle_folder
from refsam_trt.command.progress import Progress
from refsam_trt.errors import ParityError

SEED = 0
SHIPPED = "nano"
HALVES = ("fp16", "bf16")
NUM_VIDEOS = 200


def half_parity(preset: str, num_frames: int) -> Step:
    """Export with random weights in fp16 and bf16 (`failures`: what is out of bounds)."""

    def step() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as scratch:
            request = ExportRequest(
                preset,
                Path(scratch) / "bundle",
                random_init=SEED,
                precisions=HALVES,
                parity_frames=num_frames,
            )
            try:
                parity = export_bundle(request, _say).parity
            except ParityError as error:
                return {"preset": preset, "failures": [str(error)]}
        return {"preset": preset, "variants": parity}

    return step


def shipped_on_videos(precision: str) -> Step:
    """Judge the shipped weights in half on videos (`failures`: what is out of bounds)."""

    def step() -> dict[str, Any]:
        shipped = open_bundle(bundle_folder(SHIPPED))
        with tempfile.TemporaryDirectory() as scratch:
            bundle = Path(scratch) / "bundle"
            request = ExportRequest(
                shipped.manifest.preset,
                bundle,
                checkpoint=shipped.path(shipped.manifest.source or "source.safetensors"),
                precisions=(precision,),
                include_source=True,
            )
            export_bundle(request, _say)
            with Progress("refsam-bench prove", NUM_VIDEOS) as progress:
                judged = HalfRequest(bundle, precision, num_videos=NUM_VIDEOS)
                figures = measure_half(judged, progress.update, _say)
        return {"shipped_bundle_id": shipped.bundle_id, **figures.to_json()}

    return step


def _say(line: str) -> None:
    click.echo(f"  {line}")


STEPS: dict[str, Step] = {
    "half-nano": half_parity("nano", 5),
    "half-vitb": half_parity("vitb", 3),
    **{f"{precision}-videos-nano": shipped_on_videos(precision) for precision in HALVES},
}
