"""What a step gives back: one `Result` per expression, and the frame's results together."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from refsam_trt.errors import UsageError
from refsam_trt.image.postprocess import (
    Postprocessor,
    box_xyxy_from_mask,
    label_map_from_logits,
    mask_from_logits,
)
from refsam_trt.result.polygons import Polygon, polygons_from_mask
from refsam_trt.result.rle import Rle, rle_from_mask

if TYPE_CHECKING:
    from refsam_trt.result.raw_frame import RawFrame


@dataclass(frozen=True, eq=False)
class Result:
    """One expression in one frame. Holds copies: valid for ever, whatever the session does next.

    The mask and what follows from it are computed when first asked for, and kept.

    Attributes:
        expression_id: what `add_expression` returned.
        text: the expression as it was understood: lower-cased if the bundle says so, cleaned up.
        frame_index: counted from 0 since the video was opened or reset.
        frame_hw: size of the frame in pixels.
        low_res_logits: float32 [4h, 4w], of the square, padded network input; read-only.
        predicted_iou: SAM's own score of the mask. RefSAM does not train it: a raw number, neither
            calibrated nor bounded.
        threshold: logits above it belong to the mask.
    """

    expression_id: int
    text: str
    frame_index: int
    frame_hw: tuple[int, int]
    low_res_logits: np.ndarray = field(repr=False)
    predicted_iou: float
    threshold: float
    _postprocessor: Postprocessor = field(repr=False)

    @property
    def logits(self) -> np.ndarray:
        """Logits at the frame's size, float32 [H, W]; computed anew and yours at each access."""
        return self._postprocessor.logits(self.low_res_logits)

    @property
    def mask(self) -> np.ndarray:
        """Pixels of the object, bool [H, W], read-only."""
        return self._decision[0]

    @property
    def mask_confidence(self) -> float | None:
        """Mean of sigmoid(logits) inside the mask, 0 to 1; None if the mask is empty."""
        return self._decision[1]

    @property
    def is_empty(self) -> bool:
        """Whether no pixel belongs to the mask."""
        return self.mask_confidence is None

    @cached_property
    def box_xyxy(self) -> tuple[int, int, int, int] | None:
        """Tight box (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; None if the mask is empty."""
        return box_xyxy_from_mask(self.mask)

    @cached_property
    def rle(self) -> Rle:
        """The mask in COCO's compressed run-length encoding: `size` [H, W], `counts` as str."""
        return rle_from_mask(self.mask)

    @cached_property
    def polygons(self) -> tuple[Polygon, ...]:
        """The mask's parts along pixel edges, exteriors with their holes; none if it is empty."""
        return polygons_from_mask(self.mask)

    def plot(self, frame: np.ndarray) -> np.ndarray:
        """Return a copy of `frame` (uint8 [H, W, 3], RGB) with mask and text drawn on.

        An expression keeps its colour from frame to frame.

        Raises:
            UsageError: not a frame of the mask's size.
        """
        return _drawn(frame, [self])

    def to_supervision(self) -> Any:
        """Return `supervision.Detections` of this result (see `FrameResults.to_supervision`)."""
        return _detections([self])

    @cached_property
    def _decision(self) -> tuple[np.ndarray, float | None]:
        return _decide(self.logits, self.threshold)

    def _logits_kept_as_mask(self) -> np.ndarray:
        """Return `logits`; the mask, which costs little beside them, is kept for later."""
        logits = self.logits
        if "_decision" not in vars(self):  # where a cached_property keeps its value
            vars(self)["_decision"] = _decide(logits, self.threshold)
        return logits


def _decide(logits: np.ndarray, threshold: float) -> tuple[np.ndarray, float | None]:
    """Return mask and confidence."""
    mask = mask_from_logits(logits, threshold)
    mask.flags.writeable = False
    inside = logits[mask].astype(np.float64)
    # This is 1 / (1 + exp(-x)), in a form that cannot overflow.
    return mask, float(np.mean(0.5 * (1 + np.tanh(inside / 2)))) if inside.size else None


class FrameResults(Sequence[Result]):
    """The results of one frame, in the order the expressions were added; may be empty.

    Attributes:
        frame_index: the frame they belong to.
        frame_hw: its size in pixels.
    """

    def __init__(
        self, frame_index: int, frame_hw: tuple[int, int], results: Sequence[Result]
    ) -> None:
        self.frame_index = frame_index
        self.frame_hw = frame_hw
        self._results = tuple(results)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Result]: ...
    def __getitem__(self, index: int | slice) -> Result | Sequence[Result]:
        return self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    def __repr__(self) -> str:
        return f"FrameResults(frame_index={self.frame_index}, results={list(self._results)!r})"

    def label_map(self) -> np.ndarray:
        """Return one label per pixel, uint8 [H, W]: 0 background, k the k-th result.

        The rule of Ref-DAVIS17: the best logit wins where it exceeds 0.1 (refsam-model 2.3),
        whatever `threshold` is.

        Raises:
            UsageError: more than 255 results.
        """
        return self._label_map.copy()

    @cached_property
    def _label_map(self) -> np.ndarray:
        if not self._results:
            return np.zeros(self.frame_hw, np.uint8)
        return label_map_from_logits(result._logits_kept_as_mask() for result in self._results)

    def plot(self, frame: np.ndarray) -> np.ndarray:
        """Return a copy of `frame` (uint8 [H, W, 3], RGB) with all masks and texts drawn on.

        Raises:
            UsageError: not a frame of the masks' size.
        """
        return _drawn(frame, self._results)

    def to_supervision(self) -> Any:
        """Return `supervision.Detections` with boxes, masks, confidences, ids and texts.

        Results with an empty mask have no box and are left out. `tracker_id` and `class_id` are
        expression ids, `confidence` is `mask_confidence`, `data["text"]` the expressions.

        Raises:
            UsageError: the package `supervision` is not installed.
        """
        return _detections(self._results)


def frame_results(
    raw: RawFrame, postprocessor: Postprocessor, frame_hw: tuple[int, int], threshold: float
) -> FrameResults:
    """Wrap raw results, whose arrays become the results' own."""
    raw.low_res_logits.flags.writeable = False
    rows = zip(
        raw.expression_ids, raw.texts, raw.low_res_logits, raw.predicted_iou.tolist(), strict=True
    )
    results = [
        Result(id_, text, raw.frame_index, frame_hw, logits, iou, threshold, postprocessor)
        for id_, text, logits, iou in rows
    ]
    return FrameResults(raw.frame_index, frame_hw, results)


def _drawn(frame: np.ndarray, results: Sequence[Result]) -> np.ndarray:
    from refsam_trt.result.overlay import PALETTE, draw

    masks = [result.mask for result in results]
    colors = [PALETTE[1 + result.expression_id % 255] for result in results]
    return draw(frame, masks, [result.text for result in results], colors)


def _detections(results: Sequence[Result]) -> Any:
    try:
        supervision = importlib.import_module("supervision")
    except ImportError as error:
        raise UsageError(
            f"to_supervision() needs the package supervision: pip install supervision ({error})"
        ) from error
    visible = [result for result in results if not result.is_empty]
    if not visible:
        return supervision.Detections.empty()
    ids = np.array([result.expression_id for result in visible])
    return supervision.Detections(
        xyxy=np.array([result.box_xyxy for result in visible], np.float32),
        mask=np.stack([result.mask for result in visible]),
        confidence=np.array([result.mask_confidence for result in visible], np.float32),
        class_id=ids,
        tracker_id=ids,
        data={"text": np.array([result.text for result in visible])},
    )
