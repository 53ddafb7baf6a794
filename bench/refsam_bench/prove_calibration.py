"""Steps of `make prove` about `refsam-calibrate`, which runs in processes of its own.

Processes also because this package stands below `refsam_calibration`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click

LARGEST_GROWTH = 1.05
VITB_LIMIT_MIB = 6 * 1024

Step = Callable[[], dict[str, Any]]


def memory(preset: str, few: int, many: int, limit_mib: float | None = None) -> Step:
    """Peak memory of calibrating with few frames and with many (`failures`: what grew)."""

    def step() -> dict[str, Any]:
        peaks = {}
        for num_frames in (few, many):
            click.echo(f"  {preset}, {num_frames} frames")
            command = [sys.executable, "-m", "refsam_calibration.memory", preset, str(num_frames)]
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
        command = [sys.executable, "-m", "refsam_calibration.forms", preset, str(num_frames)]
        found = json.loads(subprocess.check_output(command, text=True))
        return {
            "preset": preset,
            "num_frames": num_frames,
            "random_weights": True,
            "forms": found,
        }

    return step


STEPS: dict[str, Step] = {
    "calibration-forms-nano": forms("nano", 12),
    "calibration-forms-vitb": forms("vitb", 6),
    "calibration-memory-nano": memory("nano", 16, 512),
    "calibration-memory-vitb": memory("vitb", 4, 16, VITB_LIMIT_MIB),
}
