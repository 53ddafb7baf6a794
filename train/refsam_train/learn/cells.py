"""An auxiliary task for training from nothing: say of every grid cell what it shows and where.

Without a pre-trained backbone the masks alone teach the image encoder colours quickly, but shapes
only after very long: nothing asks for them until the decoder can use them, and the other way round.
So linear heads name shape, colour and pattern of the object in each cell, draw the silhouette
inside the cell, point to the object's centre and tell its place and size. Silhouette and centre are
what a shape is made of: with names alone the heads stay at guessing for thousands of images.
The heads are thrown away; the published model does not have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from refsam_bench.synthetic.palette import COLOURS
from refsam_bench.synthetic.scene import Scene, SceneObject
from refsam_bench.synthetic.shapes import OUTLINES
from refsam_bench.synthetic.texture import PATTERNS
from refsam_export.refsam.model.config import EMBED_DIM

UNNAMED: Final = -1
"""Class of a cell that has no name now, such as a colour that is changing; it is not judged."""

_NAMES: Final = (tuple(OUTLINES), tuple(COLOURS), tuple(PATTERNS))
_NAME_SIZES: Final = [len(names) for names in _NAMES]
_PARTS: Final = 4
"""Silhouettes are drawn in so many parts per side of a cell: the decoder's own resolution."""
_POSE: Final = 5
_SILHOUETTE_WEIGHT: Final = 2.0
# An object belongs to a cell of which it covers this much.
_COVERED: Final = 0.125
# Two patches of 16 pixels where the frame has 256, and the radius of a middling object.
_OFFSET_UNIT: Final = 0.125
_MIDDLE_RADIUS: Final = 0.105
_PLACE_SCALE: Final = 4.0
_STEADY: Final = 0.2


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
    names = np.full((len(times), count, len(_NAMES)), UNNAMED, np.int64)
    poses = np.ones((len(times), count, 3), np.float32)
    for row, time in enumerate(times):
        for item in scene.objects:
            names[row, item.object_id] = _places(item, time)
            pose = item.pose_at(time)
            poses[row, item.object_id] = (pose.x, pose.y, pose.radius)
    return Shown(label_map, names, poses)


def _places(item: SceneObject, time: float) -> list[int]:
    values = (item.shape, item.colour_at(time), item.pattern)
    return [
        UNNAMED if value is None else names.index(value)
        for names, value in zip(_NAMES, values, strict=True)
    ]


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
    fine = grid * _PARTS
    side = label_map.shape[0] // fine
    shares = (label_map > 0).reshape(fine, side, fine, side).mean((1, 3))
    parts = np.where(shares >= 0.5, np.float32(1.0), np.float32(0.0))
    apart = parts.reshape(grid, _PARTS, grid, _PARTS).transpose(1, 3, 0, 2)
    return apart.reshape(_PARTS * _PARTS, grid, grid)


class CellHeads(nn.Module):
    """One linear layer per level of the image encoder's features, for all labels of a cell."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self._sizes = [sum(_NAME_SIZES), _PARTS * _PARTS, _POSE]
        self.heads = nn.ModuleList(
            nn.Linear(EMBED_DIM, sum(self._sizes)) for _ in range(num_levels)
        )

    def forward(self, levels: Tensor, labels: CellLabels) -> tuple[Tensor, Tensor]:
        """Return the loss, averaged over levels, and the share of right shapes in the last level.

        Args:
            levels: [M, L, 256, h, w], of unit length along 256.
            labels: with the leading axis M.
        """
        # Unit vectors have elements of about 1/16: bring them to 1.
        scaled = levels.permute(1, 0, 3, 4, 2) * EMBED_DIM**0.5
        losses, right = [], torch.zeros(())
        for head, level in zip(self.heads, scaled, strict=True):
            names, silhouettes, poses = head(level).float().movedim(-1, 1).split(self._sizes, 1)
            parts = names.split(_NAME_SIZES, 1)
            losses.append(
                _name_loss(parts, labels.names)
                + _SILHOUETTE_WEIGHT
                * functional.binary_cross_entropy_with_logits(silhouettes, labels.silhouettes)
                + _pose_loss(poses, labels)
            )
            right = _share_right(parts[0].detach(), labels.names[:, 0])
        return torch.stack(losses).mean(), right


def _name_loss(parts: Sequence[Tensor], names: Tensor) -> Tensor:
    """Return the mean cross-entropy over attributes and named cells; 0 where nothing has a name."""
    losses = [
        functional.cross_entropy(part, names[:, row], ignore_index=UNNAMED, reduction="sum")
        / (names[:, row] != UNNAMED).sum().clamp_min(1)
        for row, part in enumerate(parts)
    ]
    return torch.stack(losses).mean()


def _pose_loss(poses: Tensor, labels: CellLabels) -> Tensor:
    owned = (labels.names[:, :1] != UNNAMED).expand_as(poses)
    wrong = functional.smooth_l1_loss(poses, labels.poses, beta=_STEADY, reduction="none")
    return (wrong * owned).sum() / owned.sum().clamp_min(1)


def _share_right(logits: Tensor, places: Tensor) -> Tensor:
    named = places != UNNAMED
    right = (logits.argmax(1) == places) & named
    return right.sum() / named.sum().clamp_min(1)
