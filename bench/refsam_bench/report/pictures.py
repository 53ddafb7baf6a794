"""Frames with what is right, too much and missing drawn on, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refsam_bench.datasets.outcome import Case, Frame, Mask, Outcome, View
from refsam_trt.result.overlay import draw
from refsam_trt.run.outputs import RANDOM_CAPTION, with_banner

ANNOTATION = "annotation"
RIGHT, TOO_MUCH, MISSING = (0, 200, 120), (255, 140, 0), (60, 110, 255)
"""Colours, RGB: green, orange and blue, which colour-blind readers tell apart too."""

_WIDEST_PX = 480
_QUALITY = 88
_GREY_SHARE = 0.8


def draw_row(
    name: str,
    view: View,
    case: Case,
    index: int,
    outcomes: Mapping[str, Outcome],
    random_keys: Collection[str],
) -> dict[str, str]:
    """Return the pictures of one frame: `<name>-annotation`, and `<name>-<key>` per side.

    Those of `random_keys`, sides with random weights, say so.
    """
    pictures = {f"{name}-{ANNOTATION}": data_uri(outlined(view))}
    for key, outcome in outcomes.items():
        drawn = judged(view, outcome.answers[case].masks[index])
        if key in random_keys:
            drawn = with_banner(drawn, RANDOM_CAPTION)
        pictures[f"{name}-{key}"] = data_uri(drawn)
    return pictures


def outlined(view: View) -> Frame:
    """Return the frame with a line around the true mask, its colours as they are inside."""
    width = max(2, min(view.mask.shape) // 120)
    line = _grown(view.mask, width)
    frame = view.frame.copy()
    frame[_grown(line, 1) & ~view.mask] = 0
    frame[line & ~view.mask] = RIGHT
    return frame


def judged(view: View, mask: Mask) -> Frame:
    """Return the pale frame with the mask drawn on, in other colours where the truth differs.

    Void pixels count as right where they are covered, and never as missing.
    """
    right = mask & (view.mask | view.void)
    regions = [right, mask & ~right, view.mask & ~mask]
    return draw(_pale(view.frame), regions, [""] * 3, [RIGHT, TOO_MUCH, MISSING])


def _grown(mask: Mask, steps: int) -> Mask:
    """Return the mask with `steps` pixels more on every side, 4-connected."""
    for _ in range(steps):
        wide = np.pad(mask, 1)
        mask = mask | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    return mask


def _pale(frame: Frame) -> Frame:
    """Take most of the colour away, so that what is drawn stands out from coloured objects."""
    image = Image.fromarray(frame)
    grey = image.convert("L").convert("RGB")
    return np.array(Image.blend(image, grey, _GREY_SHARE))


def data_uri(frame: NDArray[np.uint8]) -> str:
    """Return a JPEG of a frame, at most 480 pixels wide, as a data URI."""
    image = Image.fromarray(frame)
    if image.width > _WIDEST_PX:
        height = max(1, round(image.height * _WIDEST_PX / image.width))
        image = image.resize((_WIDEST_PX, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
