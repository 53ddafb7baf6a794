"""Steps of `make prove` about `refsam-calibrate`, which runs in processes of its own."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from refsam_calibration.calibrate import Display, calibrate
from refsam_calibration.gate.judge import Judgement
from refsam_calibration.report import to_json
from refsam_calibration.request import CalibrateRequest
from refsam_prove import Step
from refsam_prove.exports import SHIPPED, export_shipped, say
from refsam_prove.quantised.agreement import measure_agreement
from refsam_prove.quantised.forms import calibration_peak_mib, compare_forms
from refsam_trt.bundle.open import open_bundle
from refsam_trt.bundle.shipped import bundle_folder
from refsam_trt.command.in_process import in_process
from refsam_trt.command.progress import Progress
from refsam_trt.errors import AccuracyGateError

CLIPS = Path(__file__).resolve().parents[3] / "calibration" / "clips.toml"
NUM_VERIFIED = 200
MAX_DROP_POINTS = 0.5
MIN_SHARE = 0.9
MIN_AGREEMENT = 0.99
LARGEST_GROWTH = 1.05
VITB_LIMIT_MIB = 6 * 1024


def memory(preset: str, few: int, many: int, limit_mib: float | None = None) -> dict[str, Any]:
    """Peak memory of calibrating with few frames and with many (`failures`: what grew)."""
    peaks = {}
    for num_frames in (few, many):
        say(f"{preset}, {num_frames} frames")
        peaks[num_frames] = in_process(calibration_peak_mib, preset, num_frames)
    return {
        "preset": preset,
        "random_weights": True,
        "peak_mib": {str(num_frames): peak for num_frames, peak in peaks.items()},
        "growth": peaks[many] / peaks[few],
        "failures": memory_failures(preset, peaks, limit_mib),
    }


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


def forms(preset: str, num_frames: int) -> dict[str, Any]:
    """Errors of int8 with plain min-max ranges, with chosen ones, and with smoothing as well."""
    return {
        "preset": preset,
        "num_frames": num_frames,
        "random_weights": True,
        "forms": in_process(compare_forms, preset, num_frames),
    }


def gate() -> dict[str, Any]:
    """Quantise the model that ships as far as half a point of J&F allows (`failures`)."""
    shipped = open_bundle(bundle_folder(SHIPPED))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        export_shipped(shipped, folder / "base", ("fp32", "fp16"))
        request = CalibrateRequest(
            folder / "base",
            clips=CLIPS,
            output=folder / "int8",
            max_drop_points=MAX_DROP_POINTS,
            min_share=MIN_SHARE,
        )
        try:
            figures = in_process(calibrated_figures, request)
        except AccuracyGateError as error:
            return {
                "bundle_id": shipped.bundle_id,
                "failures": [f"{SHIPPED}: the gate says no: {error}"],
            }
        ranges_file = Path(figures["ranges_file"])
        kernels = in_process(measure_agreement, folder / "int8", ranges_file, NUM_VERIFIED)
    return {
        "bundle_id": shipped.bundle_id,
        "search": figures["search"],
        "verified": figures["verified"],
        "kernels_against_fake_quantisation": msgspec.to_builtins(kernels),
        "failures": gate_failures(figures, kernels),
    }


def calibrated_figures(request: CalibrateRequest) -> dict[str, Any]:
    """Do a calibration and return its figures as `refsam-calibrate --json` prints them."""
    return to_json(calibrate(request, Display(say, Progress)))


def gate_failures(figures: dict[str, Any], kernels: Judgement) -> list[str]:
    """Return what does not hold of a quantised bundle that the gate let through."""
    failures = []
    if figures["search"]["share"] < MIN_SHARE:
        failures.append(f"{SHIPPED}: {figures['search']['share']:.1%} of the linear FLOPs in int8")
    if figures["verified"]["drop_points"] > MAX_DROP_POINTS:
        failures.append(f"{SHIPPED}: {figures['verified']['drop_points']:.2f} points of J&F lost")
    lost = 100 * (figures["verified"]["reference_j_and_f"] - kernels.j_and_f)
    if lost > MAX_DROP_POINTS:
        failures.append(f"{SHIPPED}: the integer kernels lose {lost:.2f} points of J&F")
    if kernels.mask_iou < MIN_AGREEMENT:
        failures.append(
            f"{SHIPPED}: mask IoU {kernels.mask_iou:.4f} between integer kernels and fake "
            f"quantisation, at least {MIN_AGREEMENT} expected"
        )
    return failures


STEPS: dict[str, Step] = {
    "calibration-forms-nano": partial(forms, "nano", 12),
    "calibration-forms-vitb": partial(forms, "vitb", 6),
    "calibration-memory-nano": partial(memory, "nano", 16, 512),
    "calibration-memory-vitb": partial(memory, "vitb", 4, 16, VITB_LIMIT_MIB),
    "calibration-nano": gate,
}
