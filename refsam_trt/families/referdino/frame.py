"""Sizes of a frame inside ReferDINO (referdino-model 2.1)."""

from __future__ import annotations

SHORT_SIDE_PX = 360
NUM_GRIDS = 5
"""Grids of strides 4, 8, 16, 32 and 64; the transformer sees all but the first."""


def network_size(height: int, width: int, short_side: int = SHORT_SIDE_PX) -> tuple[int, int]:
    """Return the (height, width) that a frame is brought to: the shorter side decides.

    The longer side is rounded down. There is no limit to it, and no padding.
    """
    if height <= width:
        return short_side, short_side * width // height
    return short_side * height // width, short_side


def grid_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return the (height, width) of the five grids of a network input, finest first."""
    sizes = [(-(-height // 4), -(-width // 4))]
    while len(sizes) < NUM_GRIDS:
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes


def num_cells(height: int, width: int) -> int:
    """Return S, the cells of the four levels that the transformer sees."""
    return sum(rows * columns for rows, columns in grid_sizes(height, width)[1:])
