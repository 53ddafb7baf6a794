"""What parity is measured on: expressions, a scene that shows what they name, and any scenes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

FRAME_HW = (360, 640)
EXPRESSIONS = (
    "the red disc on the left",
    "the largest striped ball that is moving slowly to the right behind the others",
    "blue square",
)
# The last expression joins here: one without a track token meets two that have one.
LATE_FRAME = 2
FIRST_FRAMES = (0, 0, LATE_FRAME)
"""In which frame each expression joins."""


@dataclass(frozen=True)
class _Disc:
    centre: np.ndarray  # (x, y) as shares of the frame
    velocity: np.ndarray  # shares per frame
    radius: float  # share of the short side
    colour: np.ndarray  # [3], 0..255


def moving_frames(num_frames: int, seed: int, hw: tuple[int, int] = FRAME_HW) -> np.ndarray:
    """Draw coloured discs over a drifting gradient.

    Returns:
        uint8 [num_frames, H, W, 3], RGB, the same for the same arguments.
    """
    rng = np.random.default_rng(seed)
    discs = [
        _Disc(rng.uniform(0.2, 0.8, 2), rng.uniform(-0.04, 0.04, 2), radius, rng.uniform(0, 255, 3))
        for radius in (0.10, 0.16, 0.22, 0.13, 0.08)
    ]
    waves = rng.uniform(1.0, 5.0, (3, 2, 2))
    grain = rng.normal(0.0, 6.0, (*hw, 3))
    frames = (_draw(index, hw, discs, waves) + grain for index in range(num_frames))
    return np.stack([frame.clip(0, 255).astype(np.uint8) for frame in frames])


def joining(index: int) -> list[str]:
    """Return the expressions that join in a frame."""
    return [t for t, first in zip(EXPRESSIONS, FIRST_FRAMES, strict=True) if first == index]


def named_frames(num_frames: int, hw: tuple[int, int] = FRAME_HW) -> Iterator[np.ndarray]:
    """Draw a red disc on the left, a large striped ball and a blue square, all moving slowly.

    What `EXPRESSIONS` name is there, once each: a trained model that looks for what is nowhere
    gives masks that the last bit of a number decides, and nothing can be compared by those.

    Yields:
        uint8 [H, W, 3], RGB, the same for the same arguments.
    """
    rng = np.random.default_rng(0)
    grain = rng.normal(0.0, 4.0, (*hw, 3))
    for index in range(num_frames):
        yield (_draw_named(index, hw) + grain).clip(0, 255).astype(np.uint8)


def _draw_named(index: int, hw: tuple[int, int]) -> np.ndarray:
    height, width = hw
    y, x = np.mgrid[0:height, 0:width] / height  # in heights, so that shapes keep theirs
    right = width / height
    shade = 120 + 20 * np.sin(3.0 * x + 0.1 * index) + 15 * np.cos(4.0 * y)
    frame = np.stack([shade, shade + 10.0, shade - 10.0], axis=-1)
    frame[np.hypot(x - 0.15 * right - 0.01 * index, y - 0.4) < 0.11] = (215, 40, 35)
    ball = np.hypot(x - 0.5 * right - 0.01 * index, y - 0.55) < 0.24
    is_light = np.sin(2 * np.pi * (y - 0.55) / 0.12) > 0.0
    frame[ball & is_light], frame[ball & ~is_light] = (240, 235, 90), (60, 150, 60)
    square = np.maximum(abs(x - 0.84 * right), abs(y - 0.35 - 0.01 * index)) < 0.11
    frame[square] = (40, 70, 215)
    return frame


def _draw(index: int, hw: tuple[int, int], discs: list[_Disc], waves: np.ndarray) -> np.ndarray:
    height, width = hw
    y, x = np.mgrid[0:height, 0:width]
    u, v = x / width + 0.02 * index, y / height
    frame = np.stack(
        [110 + 50 * np.sin(2 * np.pi * (w[0, 0] * u + w[0, 1] * v)) + 30 * v for w in waves], -1
    )
    for disc in discs:
        centre = (disc.centre + index * disc.velocity) * (width, height)
        distance = np.hypot(x - centre[0], y - centre[1])
        frame[distance < disc.radius * min(hw)] = disc.colour
    return frame
