"""Steps of `make prove` about `refsam-calibrate`, which runs in processes of its own.

Processes also because this package stands below `refsam_calibration`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from refsam_export.exporter import export_bundle
from refsam_export.request import ExportRequest
from refsam_trt.bundle.open import open_bundle
from refsam_trt.bundle.shipped import bundle_folder
from refsam_trt.errors import InternalError

MODEL = "nano"
CLIPS = Path(__file__).resolve().parents[3] / "calibration" / "clips.toml"
NUM_VERIFIED = 200
MAX_DROP_POINTS = 0.5
MIN_SHARE = 0.9
MIN_AGREEMENT = 0.99
LARGEST_GROWTH = 1.05
VITB_LIMIT_MIB = 6 * 1024

Step = Callable[[], dict[str, Any]]


def memory(preset: str, few: int, many: int, limit_mib: float | None = None) -> Step:
    """Peak memory of calibrating with few frames and with many (`failures`: what grew)."""

    def step() -> dict[str, Any]:
        peaks = {}
        for num_frames in (few, many):
            click.echo(f"  {preset}, {num_frames} frames")
            command = [
                sys.executable,
                "-m",
                "refsam_prove.quantised.memory",
                preset,
                str(num_frames),
            ]
            found = json.loads(subprocess.check_output(command, text=True))
            peaks[num_frames] = found["peak_mib"]
        return {
            "preset": preset,
            "random_weights": True,
            "peak_mib": {str(num_frames): peak for num_frames, peak in peaks.items()},
            "growth": peaks[many] / peaks[few],
            "failures": memory_failures(preset, peaks, limit_mib),
        }

    return step


def memory_failures(preset: str, peaks: dict[int, float], limit_mib: float | None) -> list[str]:
    """Return what is out of bounds: growth with the number of frames, or the peak itself."""
    failures = []
    (few, least), (many, most) = sorted(peaks.items())
    if most > LARGEST_GROWTH * least:
        failures.append(
            f"{preset}: {most:.0f} MiB with {many} frames, {least:.0f} MiB with {few}: grew by "
            f"more than {LARGEST_GROWTH - 1:.0%}"
        )
    if limit_mib is not None and most > limit_mib:
        failures.append(f"{preset}: {most:.0f} MiB, at most {limit_mib:.0f} MiB allowed")
    return failures


def forms(preset: str, num_frames: int) -> Step:
    """Errors of int8 with plain min-max ranges, with chosen ones, and with smoothing as well."""

    def step() -> dict[str, Any]:
        command = [sys.executable, "-m", "refsam_prove.quantised.forms", preset, str(num_frames)]
        found = json.loads(subprocess.check_output(command, text=True))
        return {
            "preset": preset,
            "num_frames": num_frames,
            "random_weights": True,
            "forms": found,
        }

    return step


def gate() -> dict[str, Any]:
    """Quantise the model that ships as far as half a point of J&F allows (`failures`)."""
    shipped = open_bundle(bundle_folder(MODEL))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = shipped.path(shipped.manifest.source or "source.safetensors")
        request = ExportRequest(
            shipped.manifest.preset,
            folder / "base",
            checkpoint=source,
            precisions=("fp32", "fp16"),
            include_source=True,
        )
        export_bundle(request, lambda line: click.echo(f"  {line}"))
        command = ["refsam_calibration.cli", str(folder / "base"), "--clips", str(CLIPS), "--json"]
        command += ["--output", str(folder / "int8"), "--max-jf-drop-points", str(MAX_DROP_POINTS)]
        command += ["--min-share", str(MIN_SHARE)]
        done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True)
        if done.returncode not in (0, 1):
            raise InternalError(f"refsam-calibrate ended with exit code {done.returncode}")
        if done.returncode:
            return {"bundle_id": shipped.bundle_id, "failures": [f"{MODEL}: the gate says no"]}
        found = json.loads(done.stdout)
        command = ["refsam_prove.quantised.agreement", str(folder / "int8"), found["ranges_file"]]
        command += [str(NUM_VERIFIED)]
        kernels = json.loads(subprocess.check_output([sys.executable, "-m", *command], text=True))
    return {
        "bundle_id": shipped.bundle_id,
        "search": found["search"],
        "verified": found["verified"],
        "kernels_against_fake_quantisation": kernels,
        "failures": gate_failures(found, kernels),
    }


def gate_failures(found: dict[str, Any], kernels: dict[str, Any]) -> list[str]:
    """Return what does not hold of a quantised bundle that the gate let through."""
    failures = []
    if found["search"]["share"] < MIN_SHARE:
        failures.append(f"{MODEL}: {found['search']['share']:.1%} of the linear FLOPs in int8")
    if found["verified"]["drop_points"] > MAX_DROP_POINTS:
        failures.append(f"{MODEL}: {found['verified']['drop_points']:.2f} points of J&F lost")
    lost = 100 * (found["verified"]["reference_j_and_f"] - kernels["j_and_f"])
    if lost > MAX_DROP_POINTS:
        failures.append(f"{MODEL}: the integer kernels lose {lost:.2f} points of J&F")
    if kernels["mask_iou"] < MIN_AGREEMENT:
        failures.append(
            f"{MODEL}: mask IoU {kernels['mask_iou']:.4f} between integer kernels and fake "
            f"quantisation, at least {MIN_AGREEMENT} expected"
        )
    return failures


STEPS: dict[str, Step] = {
    "calibration-forms-nano": forms("nano", 12),
    "calibration-forms-vitb": forms("vitb", 6),
    "calibration-memory-nano": memory("nano", 16, 512),
    "calibration-memory-vitb": memory("vitb", 4, 16, VITB_LIMIT_MIB),
    "calibration-nano": gate,
}
