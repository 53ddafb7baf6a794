"""Which slots an expression means, and which object owns a pixel (referdino-model 7)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.2
"""Mean probability above which MeViS takes a slot."""


def best_slot(score: NDArray[np.floating]) -> int:
    """Return the slot with the largest mean probability over the frames.

    Args:
        score: probabilities [T, slots].
    """
    return int(score.mean(axis=0).argmax())


def slots_above(score: NDArray[np.floating], threshold: float = THRESHOLD) -> NDArray[np.int64]:
    """Return the slots, ascending, whose mean probability is above a threshold; else the best one.

    Args:
        score: probabilities [T, slots].
        threshold: a mean that equals it is not above it.
    """
    slots = np.flatnonzero(score.mean(axis=0) > threshold)
    return slots if len(slots) else np.array([best_slot(score)])


def union_mask(logits: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return where any slot's logit is above 0.

    Args:
        logits: [slots, H, W] of one frame at its full size: each slot is cut before they are
            united, not the largest logit interpolated.

    Returns:
        bool [H, W].
    """
    mask: NDArray[np.bool_] = np.any(logits > 0, axis=0)
    return mask


def label_map(logits: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return the object of each pixel as Ref-DAVIS17 wants it: 0 where no logit is 0 or more.

    Args:
        logits: [objects, H, W] at full size, of the objects 1, 2, ... in this order.

    Returns:
        uint8 [H, W]; of equal logits the first wins.
    """
    labels = logits.argmax(axis=0) + 1
    return np.where(logits.max(axis=0) >= 0, labels, 0).astype(np.uint8)
