"""What `refsam-run` writes of one video: label maps, RLE, an overlay, boxes.

Each output is a context manager that gives a function to call once per finished frame. Folder or
file appear when it ends without an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from refsam_trt.errors import UsageError
from refsam_trt.files.atomic import atomic_path
from refsam_trt.image.postprocess import MAX_LABELS
from refsam_trt.media.frames import FrameSource
from refsam_trt.result.overlay import colors_for, draw
from refsam_trt.result.result import FrameResults, Result
from refsam_trt.result.writers import OverlayVideoWriter, PalettePngWriter, RleWriter

DEFAULT_OUTPUTS = ("masks", "rle", "overlay")
RANDOM_CAPTION = "RANDOM WEIGHTS: masks mean nothing"

_IMAGE_FPS = 24.0
"""Of overlay videos of images, which have no rate of their own: it is the rate of DAVIS."""


@dataclass(frozen=True)
class FinishedFrame:
    """A frame with its results: `name` and `index` are those of the source."""

    name: str
    index: int
    frame: NDArray[np.uint8]
    results: FrameResults


FrameWriter = Callable[[FinishedFrame], None]
Draw = Callable[[FrameResults], None]
"""Computes what outputs need of results, which keep it: work for a thread of its own."""


@dataclass(frozen=True)
class OutputTarget:
    """What the outputs of one video need to know: every `stride`-th frame of `source` is done."""

    folder: Path
    source: FrameSource
    expressions: tuple[str, ...]
    stride: int
    is_random: bool


def check_outputs(save: Sequence[str], num_expressions: int) -> None:
    """Refuse unknown outputs, and more expressions than labels.

    Raises:
        UsageError: as said.
    """
    if not save or (unknown := [name for name in save if name not in OUTPUTS]):
        names = ", ".join(map(repr, unknown)) if save else "nothing"
        raise UsageError(f"save: found {names}, expected some of {', '.join(OUTPUTS)}")
    if num_expressions > MAX_LABELS and {"masks", "overlay"} & set(save):
        raise UsageError(
            f"found {num_expressions} expressions, expected at most {MAX_LABELS} for masks and "
            "overlay, which give each its own label and colour; save rle or json only, or run twice"
        )


def draw_for(save: Sequence[str]) -> Draw:
    """Return what computes what the outputs named in `save` need of a frame."""
    return draw_label_map if "masks" in save else draw_masks


def draw_label_map(results: FrameResults) -> None:
    """Compute the label map of a frame, and with it all masks."""
    results.label_map()


def draw_masks(results: FrameResults) -> None:
    """Compute all masks of a frame."""
    for result in results:
        _ = result.mask


@contextmanager
def open_outputs(target: OutputTarget, save: Sequence[str]) -> Iterator[FrameWriter]:
    """Open the outputs named in `save`; the function writes a frame to all of them."""
    with ExitStack() as stack:
        writers = [stack.enter_context(OUTPUTS[name](target)) for name in dict.fromkeys(save)]

        def write(done: FinishedFrame) -> None:
            for writer in writers:
                writer(done)

        yield write


@contextmanager
def _masks(target: OutputTarget) -> Iterator[FrameWriter]:
    with PalettePngWriter(target.folder / "masks") as writer:
        yield lambda done: writer.write(done.name, done.results.label_map())


@contextmanager
def _rle(target: OutputTarget) -> Iterator[FrameWriter]:
    path, source = target.folder / "rle.json", target.source
    with RleWriter(path, source.name, source.original_hw, target.expressions) as writer:
        yield lambda done: writer.write(done.name, [result.mask for result in done.results])


@contextmanager
def _overlay(target: OutputTarget) -> Iterator[FrameWriter]:
    source = target.source
    if source.fps is None and source.num_frames == 1:
        path = target.folder / "overlay.png"
        yield lambda done: Image.fromarray(_drawn(done, target)).save(path, format="PNG")
        return
    fps = source.fps / target.stride if source.fps else _IMAGE_FPS
    with OverlayVideoWriter(target.folder / "overlay.mp4", fps, source.original_hw) as writer:
        yield lambda done: writer.write(_drawn(done, target))


@contextmanager
def _json(target: OutputTarget) -> Iterator[FrameWriter]:
    with (
        atomic_path(target.folder / "results.jsonl") as path,
        path.open("w", encoding="utf-8", newline="\n") as file,
    ):
        yield lambda done: print(
            json.dumps(_frame_entry(done, target), ensure_ascii=False), file=file
        )


OUTPUTS: dict[str, Callable[[OutputTarget], AbstractContextManager[FrameWriter]]] = {
    "masks": _masks,
    "rle": _rle,
    "overlay": _overlay,
    "json": _json,
}
"""Everything that `save` may name: palette PNGs, COCO RLE, drawn frames, boxes and confidences."""


def _frame_entry(done: FinishedFrame, target: OutputTarget) -> dict[str, Any]:
    texts = zip(target.expressions, done.results, strict=True)
    return {
        "frame": done.name,
        "frame_index": done.index,
        "random_init": target.is_random,
        "results": [_result_entry(text, result) for text, result in texts],
    }


def _result_entry(text: str, result: Result) -> dict[str, Any]:
    return {
        "expression_id": result.expression_id,
        "expression": text,
        "box_xyxy": result.box_xyxy,
        "mask_area_px": int(np.count_nonzero(result.mask)),
        "mask_confidence": result.mask_confidence,
        "predicted_iou": result.predicted_iou,
    }


def _drawn(done: FinishedFrame, target: OutputTarget) -> NDArray[np.uint8]:
    masks = [result.mask for result in done.results]
    drawn = draw(done.frame, masks, target.expressions, colors_for(len(masks)))
    return with_banner(drawn, RANDOM_CAPTION) if target.is_random else drawn


def with_banner(frame: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """Return the frame, uint8 [H, W, 3], with a line of white on black at its bottom."""
    image = Image.fromarray(frame)
    canvas = ImageDraw.Draw(image)
    width_per_px = canvas.textlength(text, ImageFont.load_default(100)) / 100
    size_px = max(6.0, min(image.height / 24, 0.96 * image.width / width_per_px))
    font = ImageFont.load_default(size_px)
    top = image.height - round(1.4 * size_px)
    canvas.rectangle((0, top, image.width, image.height), fill=(0, 0, 0))
    middle = (image.width / 2, (top + image.height) / 2)
    canvas.text(middle, text, fill=(255, 255, 255), font=font, anchor="mm")
    return np.array(image)
