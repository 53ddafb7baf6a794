"""What a grid cell of a synthetic frame shows, and where: labels of the auxiliary task of `learn`.

The class of a cell's shape, colour and pattern, its silhouette, and the pose of its object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refsam_bench.synthetic.palette import COLOURS
from refsam_bench.synthetic.scene import Scene
from refsam_bench.synthetic.shapes import OUTLINES
from refsam_bench.synthetic.texture import PATTERNS

UNNAMED: Final = -1
"""Class of a cell that has no name now, such as a colour that is changing; it is not judged."""

NAMES: Final = (tuple(OUTLINES), tuple(COLOURS), tuple(PATTERNS))
"""Of shapes, colours and patterns."""
PARTS: Final = 4
"""Silhouettes are drawn in so many parts per side of a cell: the decoder's own resolution."""
POSE: Final = 5
"""How many numbers tell where an object is."""
# An object belongs to a cell of which it covers this much.
_COVERED: Final = 0.125
# Two patches of 16 pixels where the frame has 256, and the radius of a middling object.
_OFFSET_UNIT: Final = 0.125
_MIDDLE_RADIUS: Final = 0.105
_PLACE_SCALE: Final = 4.0


@dataclass(frozen=True)
class Shown:
    """What square frames show, wherever somebody knows.

    label_map: uint8 [T, H, W], 0 = no object, k = object k. names: int64 [T, K + 1, 3], places of
    shape, colour and pattern in their lists or `UNNAMED`; row 0 is no object. poses: float32 [T, K
    + 1, 3], x and y of the centre and the radius, in parts of the side.
    """

    label_map: npt.NDArray[np.uint8]
    names: npt.NDArray[np.int64]
    poses: npt.NDArray[np.float32]


class CellLabels(NamedTuple):
    """Labels of a grid, behind any leading axes [...].

    names: int64 [..., 3, h, w]. silhouettes: float32 [..., 16, h, w], 1 where a part shows any
    object. poses: float32 [..., 5, h, w], of the cell's object: way to its centre (x, y) in
    eighths of the side, the logarithm of its radius over a middling one, and where its centre is
    (x, y), -2 to 2. Names are `UNNAMED`
    where a cell has no object; poses mean nothing there.
    """

    names: Tensor
    silhouettes: Tensor
    poses: Tensor


def shown_objects(scene: Scene, label_map: npt.NDArray[np.uint8], times: Sequence[float]) -> Shown:
    """Return what frames of a scene at these times (0 to 1) show; `label_map` is theirs."""
    count = len(scene.objects) + 1
    names = np.full((len(times), count, len(NAMES)), UNNAMED, np.int64)
    poses = np.ones((len(times), count, 3), np.float32)
    for row, time in enumerate(times):
        for item in scene.objects:
            values = (item.shape, item.colour_at(time), item.pattern)
            for column, value in enumerate(values):
                if value is not None:
                    names[row, item.object_id, column] = NAMES[column].index(value)
            pose = item.pose_at(time)
            poses[row, item.object_id] = (pose.x, pose.y, pose.radius)
    return Shown(label_map, names, poses)


def cell_labels(shown: Shown, grid: int) -> CellLabels:
    """Return the labels of a grid of `grid` x `grid` cells, with the leading axis T.

    A cell belongs to the object that covers most of it, if that is at least an eighth.
    """
    rows = [
        _frame_labels(label_map, names, poses, grid)
        for label_map, names, poses in zip(shown.label_map, shown.names, shown.poses, strict=True)
    ]
    return CellLabels(*(torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True)))


def _frame_labels(
    label_map: npt.NDArray[np.uint8],
    names: npt.NDArray[np.int64],
    poses: npt.NDArray[np.float32],
    grid: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    owner = _owners(label_map, len(names), grid)
    centres = (np.arange(grid, dtype=np.float32) + 0.5) / grid
    pose = poses[owner]
    offsets = np.stack(
        [
            (pose[..., 0] - centres[None, :]) / _OFFSET_UNIT,
            (pose[..., 1] - centres[:, None]) / _OFFSET_UNIT,
            np.log(pose[..., 2] / _MIDDLE_RADIUS),
            (pose[..., 0] - 0.5) * _PLACE_SCALE,
            (pose[..., 1] - 0.5) * _PLACE_SCALE,
        ]
    )
    return names[owner].transpose(2, 0, 1), _silhouettes(label_map, grid), offsets


def _owners(label_map: npt.NDArray[np.uint8], count: int, grid: int) -> npt.NDArray[np.int64]:
    """Return which object each cell belongs to, int64 [grid, grid], 0 for none."""
    side = label_map.shape[0] // grid
    cell = np.arange(label_map.shape[0]) // side
    index = (cell[:, None] * grid + cell[None, :]) * count + label_map
    covered = np.bincount(index.ravel(), minlength=grid * grid * count).reshape(grid, grid, count)
    best = covered[..., 1:].argmax(-1) + 1
    enough = covered[..., 1:].max(-1) >= _COVERED * side * side
    return np.where(enough, best, 0)


def _silhouettes(label_map: npt.NDArray[np.uint8], grid: int) -> npt.NDArray[np.float32]:
    fine = grid * PARTS
    side = label_map.shape[0] // fine
    shares = (label_map > 0).reshape(fine, side, fine, side).mean((1, 3))
    parts = np.where(shares >= 0.5, np.float32(1.0), np.float32(0.0))
    apart = parts.reshape(grid, PARTS, grid, PARTS).transpose(1, 3, 0, 2)
    return apart.reshape(PARTS * PARTS, grid, grid)
