"""Augmentation of refsam-model 9.4: colour, mirror with left and right exchanged, resize, crop."""

from __future__ import annotations

import re
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from refsam_train.data.clips import Clip
from refsam_train.data.colour import jitter

Sizes = Literal["video", "image"]

_VIDEO_PX: Final = (288, 320, 352, 392, 416, 448, 480, 512)
# Sides drawn for the resize alone, and for the last resize after a crop, in pixels.
_ONE_STEP_PX: Final[dict[Sizes, tuple[int, ...]]] = {
    "video": _VIDEO_PX,
    "image": tuple(range(480, 769, 32)),
}
_AFTER_CROP_PX: Final[dict[Sizes, tuple[int, ...]]] = {
    "video": _VIDEO_PX,
    "image": (296, 328, 360, 392, 416, 448, 480, 512),
}
_BEFORE_CROP_PX: Final = (400, 500, 600)
_SMALLEST_CROP_PX, _LARGEST_CROP_PX = 384, 600
# No boundary behind the words: "leftmost" and "rightmost" are exchanged too.
_SIDES: Final = re.compile(r"\b(left|right)", re.IGNORECASE)


def augment(clip: Clip, sizes: Sizes, rng: np.random.Generator) -> Clip:
    """Return the clip as training shows it: mirrored and resized, every frame cropped anew."""
    frames = np.stack([_jittered(frame, rng) for frame in clip.frames])
    clip = Clip(frames, clip.masks, clip.texts, clip.name)
    if rng.random() < 0.5:
        clip = mirrored(clip)
    if rng.random() < 0.5:
        return resized(clip, _drawn(rng, _ONE_STEP_PX[sizes]))
    clip = resized(clip, _drawn(rng, _BEFORE_CROP_PX))
    return resized(_cropped(clip, rng), _drawn(rng, _AFTER_CROP_PX[sizes]))


def mirrored(clip: Clip) -> Clip:
    """Return the clip mirrored at the vertical axis, "left" and "right" exchanged in its texts."""
    frames = np.ascontiguousarray(clip.frames[:, :, ::-1])
    masks = np.ascontiguousarray(clip.masks[..., ::-1])
    return Clip(frames, masks, tuple(swap_sides(text) for text in clip.texts), clip.name)


def swap_sides(text: str) -> str:
    """Exchange "left" and "right", also in "leftmost" and "rightmost"; capitals stay."""

    def other(match: re.Match[str]) -> str:
        word = match.group()
        swapped = "right" if word.lower() == "left" else "left"
        if word.isupper():
            return swapped.upper()
        return swapped.capitalize() if word[0].isupper() else swapped

    return _SIDES.sub(other, text)


def resized(clip: Clip, size_hw: tuple[int, int]) -> Clip:
    """Return the clip at another size by nearest neighbour, frames and masks alike."""
    rows, columns = (
        _nearest(old, new) for old, new in zip(clip.frames.shape[1:3], size_hw, strict=True)
    )
    frames = clip.frames[:, rows][:, :, columns]
    return Clip(frames, clip.masks[:, :, rows][..., columns], clip.texts, clip.name)


def _cropped(clip: Clip, rng: np.random.Generator) -> Clip:
    """Return windows of one random size at a position of its own in every frame."""
    height, width = (
        int(rng.integers(_SMALLEST_CROP_PX, min(side, _LARGEST_CROP_PX) + 1))
        for side in clip.frames.shape[1:3]
    )
    frames, masks = [], []
    for number, frame in enumerate(clip.frames):
        top = int(rng.integers(frame.shape[0] - height + 1))
        left = int(rng.integers(frame.shape[1] - width + 1))
        frames.append(frame[top : top + height, left : left + width])
        masks.append(clip.masks[:, number, top : top + height, left : left + width])
    return Clip(np.stack(frames), np.stack(masks, axis=1), clip.texts, clip.name)


def _jittered(frame: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    changed = jitter(frame.astype(np.float32) / 255.0, rng)
    return (changed * 255.0 + 0.5).astype(np.uint8)


def _drawn(rng: np.random.Generator, sides_px: tuple[int, ...]) -> tuple[int, int]:
    return int(rng.choice(sides_px)), int(rng.choice(sides_px))


def _nearest(old: int, new: int) -> npt.NDArray[np.intp]:
    return np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.intp), old - 1)
