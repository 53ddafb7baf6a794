"""Masks drawn on frames: a tint, a contour and a caption for every expression."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from refsam_trt.errors import UsageError
from refsam_trt.image.postprocess import MAX_LABELS, box_xyxy_from_mask

_TINT = 115
"""Share of the colour inside a mask, of 256: the object can still be seen."""
_Box = tuple[int, int, int, int]


def _davis_palette() -> NDArray[np.uint8]:
    """Spread the bits of the label over R, G, B, lowest bit to the highest of red, and so on."""
    labels = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            is_set = labels >> (3 * bit + channel) & 1
            palette[:, channel] |= (is_set << (7 - bit)).astype(np.uint8)
    palette.flags.writeable = False
    return palette


PALETTE = _davis_palette()
"""Colours of labels in the DAVIS data sets: uint8 [256, 3], RGB, label 0 black; read-only."""


def palette_image(label_map: NDArray[np.uint8]) -> Image.Image:
    """Return a label map, uint8 [H, W], as an 8-bit image in the colours of DAVIS."""
    image = Image.fromarray(label_map)
    image.putpalette(PALETTE.tobytes())
    return image


def colors_for(count: int) -> NDArray[np.uint8]:
    """Return the palette's colours of labels 1 to `count`: uint8 [count, 3], RGB.

    Raises:
        UsageError: more colours than the palette has labels.
    """
    if not 0 <= count <= MAX_LABELS:
        raise UsageError(f"colors: found {count} expressions, expected at most {MAX_LABELS}")
    return PALETTE[1 : count + 1]


def draw(
    frame: NDArray[np.uint8],
    masks: Sequence[NDArray[np.bool_]] | NDArray[np.bool_],
    captions: Sequence[str],
    colors: NDArray[np.uint8] | Sequence[Sequence[int]],
) -> NDArray[np.uint8]:
    """Return a copy of the frame with every mask tinted, outlined and captioned, in this order.

    `frame`: uint8 [H, W, 3], RGB. `masks`: bool [H, W] each; an empty one leaves no trace.
    `captions`: one line each, cut to the frame's width; Pillow's own font shows Latin letters only.
    `colors`: R, G, B in 0..255 each.

    Raises:
        UsageError: the frame is not uint8 [H, W, 3], a mask of another size, or other numbers of
            captions or colours than masks.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise UsageError(f"frame: found {frame.dtype} {frame.shape}, expected uint8 [H, W, 3]")
    if not len(masks) == len(captions) == len(colors):
        raise UsageError(
            f"draw: found {len(masks)} masks, {len(captions)} captions and {len(colors)} colors, "
            "expected as many of each"
        )
    for mask in masks:
        if mask.dtype != np.bool_ or mask.shape != frame.shape[:2]:
            raise UsageError(
                f"mask: found {mask.dtype} {mask.shape}, expected bool {frame.shape[:2]}, the "
                "frame's size"
            )
    out = frame.copy()
    boxes = [box_xyxy_from_mask(mask) for mask in masks]
    for mask, box, color in zip(masks, boxes, colors, strict=True):
        if box is not None:
            _draw_mask(out, mask, box, np.asarray(color, np.uint8))
    image = Image.fromarray(out)
    taken: list[_Box] = []
    for caption, box, color in zip(captions, boxes, colors, strict=True):
        if box is not None and caption.strip():
            _draw_caption(image, caption, box, tuple(map(int, color)), taken)
    return np.array(image)


def _draw_mask(
    out: NDArray[np.uint8], mask: NDArray[np.bool_], box: _Box, color: NDArray[np.uint8]
) -> None:
    x0, y0, x1, y1 = box
    region, inside = out[y0:y1, x0:x1], mask[y0:y1, x0:x1]
    mixed = region[inside].astype(np.uint16) * (256 - _TINT) + color.astype(np.uint16) * _TINT
    region[inside] = (mixed >> 8).astype(np.uint8)
    region[inside & ~_eroded(inside, _line_width(mask.shape))] = color


def _eroded(mask: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    """Return the mask without its outer `steps` pixels, 4-connected; outside is background."""
    for _ in range(steps):
        wide = np.pad(mask, 1)
        mask = mask & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    return mask


def _line_width(frame_hw: tuple[int, ...]) -> int:
    return max(1, round(min(frame_hw) / 360))


@lru_cache(maxsize=8)
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


def _draw_caption(
    image: Image.Image,
    caption: str,
    box: _Box,
    color: tuple[int, ...],
    taken: list[_Box],
) -> None:
    """Write a caption in a filled box above the mask's, or below captions that are there."""
    canvas = ImageDraw.Draw(image)
    font = _font(max(12, min(image.size) // 28))
    margin = 2 * _line_width(image.size)
    text = _fitted(canvas, " ".join(caption.split()), font, image.width - 2 * margin)
    width = int(canvas.textlength(text, font)) + 1 + 2 * margin
    height = sum(font.getmetrics()) + 2 * margin  # type: ignore[union-attr]
    place = _free_place(box, (width, height), image.size, taken)
    taken.append(place)
    canvas.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=color)
    # Perceived lightness (BT.601) decides between black and white letters.
    is_light = 299 * color[0] + 587 * color[1] + 114 * color[2] > 128_000
    letters = (0, 0, 0) if is_light else (255, 255, 255)
    canvas.text((place[0] + margin, place[1] + margin), text, fill=letters, font=font)


def _fitted(
    canvas: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width_px: int,
) -> str:
    """Return the text, or as much of its beginning as fits with an ellipsis behind it."""
    if canvas.textlength(text, font) <= width_px:
        return text

    def width_of_first(count: int) -> int:
        return math.ceil(canvas.textlength(text[:count] + "...", font))

    count = bisect_right(range(len(text)), width_px, key=width_of_first) - 1
    return text[: max(count, 0)].rstrip() + "..."


def _free_place(
    mask_box: _Box, size_wh: tuple[int, int], image_wh: tuple[int, int], taken: list[_Box]
) -> _Box:
    """Return the box of a caption: inside the image, moved down past those already taken."""
    width, height = size_wh
    x0 = max(0, min(mask_box[0], image_wh[0] - width))
    y0 = max(0, min(mask_box[1] - height, image_wh[1] - height))
    place = x0, y0, x0 + width, y0 + height
    for other in sorted(taken, key=lambda box: box[1]):
        if _overlap(place, other):
            place = x0, other[3], x0 + width, other[3] + height
    return place


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
