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
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from refsam_export.refsam.model.config import EMBED_DIM
from refsam_train.data.cells import NAMES, PARTS, POSE, UNNAMED, CellLabels

_NAME_SIZES: Final = [len(names) for names in NAMES]
_SILHOUETTE_WEIGHT: Final = 2.0
_STEADY: Final = 0.2


class CellHeads(nn.Module):
    """One linear layer per level of the image encoder's features, for all labels of a cell."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self._sizes = [sum(_NAME_SIZES), PARTS * PARTS, POSE]
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
