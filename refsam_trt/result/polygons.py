"""Mask -> polygons along pixel edges: filled again they give exactly the same mask.

Why our own: OpenCV is 60 MB, and its contours run through the centres of pixels, so that filling
them again gives another mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refsam_trt.errors import InternalError

# Directions of travel along pixel edges, each a right turn of the one before; y points down.
_RIGHT, _DOWN, _LEFT, _UP = range(4)
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


@dataclass(frozen=True, eq=False)
class Polygon:
    """One 4-connected part of a mask.

    Attributes:
        exterior: int32 [K, 2], corners (x, y) in pixels, clockwise on the screen, not repeated at
            the end; pixel (row r, column c) covers x from c to c + 1 and y from r to r + 1.
        holes: the same for each hole, counter-clockwise.
    """

    exterior: np.ndarray
    holes: tuple[np.ndarray, ...]


def polygons_from_mask(mask: np.ndarray) -> tuple[Polygon, ...]:
    """Return the polygons of a mask, bool [H, W], ordered by their topmost, then leftmost corner.

    Filling exteriors and leaving holes out gives the mask back bit for bit.
    """
    exteriors: list[np.ndarray] = []
    holes: list[list[np.ndarray]] = []
    for loop, is_hole in _loops(mask):
        if is_hole:
            holes[_owner(exteriors, loop[0])].append(loop)
        else:
            exteriors.append(loop)
            holes.append([])
    return tuple(Polygon(e, tuple(h)) for e, h in zip(exteriors, holes, strict=True))


def _loops(mask: np.ndarray) -> list[tuple[np.ndarray, bool]]:
    """Return the closed walks with the mask on the right hand, and whether each bounds a hole."""
    stride = mask.shape[1] + 1
    remaining = dict.fromkeys(_edges(mask, stride))
    steps = [dx + dy * stride for dx, dy in _STEPS]
    loops = []
    for edge in list(remaining):
        if edge in remaining:
            corners = _walk(edge, remaining, steps)
            loop = np.stack(np.divmod(np.array(corners), stride)[::-1], axis=1).astype(np.int32)
            # The first edge of a walk starts at its topmost, then leftmost corner: there an
            # exterior sets out to the right and a hole down.
            loops.append((loop, edge % 4 == _DOWN))
    return loops


def _edges(mask: np.ndarray, stride: int) -> list[int]:
    """Return all directed boundary edges, sorted, as 4 * start corner + direction."""
    inside = np.pad(mask, 1)
    here = inside[1:-1, 1:-1]
    sides = (
        (inside[:-2, 1:-1], _RIGHT, 0, 0),
        (inside[1:-1, 2:], _DOWN, 0, 1),
        (inside[2:, 1:-1], _LEFT, 1, 1),
        (inside[1:-1, :-2], _UP, 1, 0),
    )
    edges = []
    for neighbour, direction, dy, dx in sides:
        row, column = np.nonzero(here & ~neighbour)
        edges.append(4 * ((row + dy) * stride + column + dx) + direction)
    return list(np.sort(np.concatenate(edges)).tolist())


def _walk(start: int, remaining: dict[int, None], steps: list[int]) -> list[int]:
    """Follow the boundary from `start`, taking its edges out of `remaining`; return the corners."""
    corner, direction = divmod(start, 4)
    corners = [corner]
    del remaining[start]
    while True:
        corner += steps[direction]
        # Where two parts touch at a corner, the right turn stays with the same part.
        for turn in (direction + 1, direction, direction + 3):
            edge = 4 * corner + turn % 4
            if edge in remaining or edge == start:
                break
        if edge == start:
            return corners
        del remaining[edge]
        if edge % 4 != direction:
            corners.append(corner)
            direction = edge % 4


def _owner(exteriors: list[np.ndarray], corner: np.ndarray) -> int:
    """Return the innermost exterior around the pixel left of a hole's first corner."""
    x, y = corner[0] - 0.5, corner[1] + 0.5
    for index in reversed(range(len(exteriors))):
        ends = np.roll(exteriors[index], -1, axis=0)
        (x0, y0), y1 = exteriors[index].T, ends[:, 1]
        crosses = (x0 > x) & ((y0 > y) != (y1 > y))
        if np.count_nonzero(crosses) % 2:
            return index
    raise InternalError("a hole without a part around it")
