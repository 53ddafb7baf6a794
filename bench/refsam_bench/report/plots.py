"""Geometry of the page's two drawings, in the units of their SVG view boxes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 640, 310
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 44, 52
_SMALLEST_SPAN = 0.1
"""Of J&F on the vertical axis: smaller differences than that should look small."""

BAR_WIDTH = 640


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Point:
    """One side: where it lies, and the figures that put it there. `number` counts from 0."""

    x: float
    y: float
    number: int
    key: str
    label: str
    is_reference: bool
    random_weights: bool
    fps: float
    j_and_f: float


@dataclass(frozen=True)
class Scatter:
    """Speed (across, logarithmic) against J&F (up)."""

    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True)
class Segment:
    """One stage of a frame in a bar of `BAR_WIDTH`."""

    stage: str
    number: int
    x: float
    width: float
    mean_ms: float


def scatter(record: Mapping[str, Any]) -> Scatter | None:
    """Return the drawing of all sides that were timed, None if none was."""
    timed = list(_timed(record))
    if not timed:
        return None
    x_range = _log_range([fps for _, fps in timed])
    y_range = _accuracy_range([side["accuracy"]["j_and_f"] for side, _ in timed])

    def x_of(value: float) -> float:
        share = (math.log10(value) - x_range[0]) / (x_range[1] - x_range[0])
        return _LEFT + share * (WIDTH - _RIGHT - _LEFT)

    def y_of(value: float) -> float:
        share = (value - y_range[0]) / (y_range[1] - y_range[0])
        return HEIGHT - _BOTTOM - share * (HEIGHT - _BOTTOM - _TOP)

    points = tuple(
        Point(
            x=x_of(fps),
            y=y_of(side["accuracy"]["j_and_f"]),
            number=number,
            key=side["key"],
            label=side["label"],
            is_reference="variant" not in side,
            random_weights=side["random_weights"],
            fps=fps,
            j_and_f=side["accuracy"]["j_and_f"],
        )
        for number, (side, fps) in enumerate(timed)
    )
    x_ticks = tuple(Tick(x_of(value), f"{value:g}") for value in _log_ticks(x_range))
    y_ticks = tuple(Tick(y_of(value), f"{value:.2f}") for value in _even_ticks(y_range))
    return Scatter(points, x_ticks, y_ticks)


def stage_bar(stages: Mapping[str, Mapping[str, float]], longest_ms: float) -> list[Segment]:
    """Return the mean time of each stage end to end; `longest_ms` takes the whole width."""
    segments, x = [], 0.0
    for number, (stage, summary) in enumerate(stages.items()):
        width = max(0.0, summary["mean_ms"]) / longest_ms * BAR_WIDTH
        segments.append(Segment(stage, number, x, width, summary["mean_ms"]))
        x += width
    return segments


def longest_frame_ms(candidates: Sequence[Mapping[str, Any]]) -> float:
    """Return the longest mean frame of all engines that were timed, at least one of them."""
    return float(max(c["speed"]["engine"]["mean_ms"] for c in candidates if c["speed"]))


def _timed(record: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], float]]:
    """Yield every side with its frames per second; a reference has those of its first engine."""
    for reference in record["references"]:
        beside = (
            candidate["speed"]["reference"]
            for candidate in record["candidates"]
            if candidate["reference"] == reference["key"] and candidate["speed"]
        )
        first = next((side for side in beside if side), None)
        if first:
            yield reference, first["fps"]
    for candidate in record["candidates"]:
        if candidate["speed"]:
            yield candidate, candidate["speed"]["engine"]["fps"]


def _log_range(values: Sequence[float]) -> tuple[float, float]:
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.15, 0.08 * (high - low))
    return low - margin, high + margin


def _log_ticks(span: tuple[float, float]) -> list[float]:
    decades = range(math.floor(span[0]), math.ceil(span[1]) + 1)
    values = [digit * 10.0**decade for decade in decades for digit in (1, 2, 3, 5, 7)]
    inside = [value for value in values if span[0] <= math.log10(value) <= span[1]]
    few = [value for value in inside if f"{value:.0e}"[0] in "125"]
    return few if len(few) > 2 else inside


def _accuracy_range(values: Sequence[float]) -> tuple[float, float]:
    middle = (min(values) + max(values)) / 2
    span = max(_SMALLEST_SPAN, 1.5 * (max(values) - min(values)))
    low = max(0.0, min(middle - span / 2, 1.0 - span))
    return low, min(1.0, low + span)


def _even_ticks(span: tuple[float, float]) -> list[float]:
    step = next(s for s in (0.02, 0.05, 0.1, 0.2, 0.5) if (span[1] - span[0]) / s <= 6)
    first, last = math.ceil(span[0] / step - 1e-9), math.floor(span[1] / step + 1e-9)
    return [number * step for number in range(first, last + 1)]
