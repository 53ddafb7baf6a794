"""Blocks of an expression: which tokens see each other, and how each block counts (2.2)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

END = "."


def sentence(cleaned: str) -> str:
    """Return a cleaned-up expression as the tokenizer gets it: it ends with a full stop."""
    return cleaned if cleaned.endswith(END) else cleaned + END


def text_blocks(
    input_ids: NDArray[np.int64], special_ids: Collection[int]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the positions and the mask that the text encoder and the grounding transformer need.

    A special token ends a block, and is part of it. Tokens of one block see each other; the first
    and the last token of all see themselves only, and so does padding.

    Args:
        input_ids: int64 [N], with the tokens that begin and end every expression.
        special_ids: ids of these two, of `.` and of `?`.

    Returns:
        `position_ids` int64 [N], counted from 0 in each block, and `text_self_mask` bool [N, N].
    """
    size = len(input_ids)
    positions, mask = np.zeros(size, np.int64), np.eye(size, dtype=bool)
    before = 0
    for end in np.flatnonzero(np.isin(input_ids, list(special_ids))).tolist():
        if 0 < end < size - 1:
            block = slice(before + 1, end + 1)
            positions[block] = np.arange(end - before)
            mask[block, block] = True
        before = end
    return positions, mask
