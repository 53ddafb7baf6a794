"""An auxiliary task for the tracking module: a track token tells where its object was.

Nothing in a mask asks the mask token to know which object it is: once pixels are marked as named,
"the marked ones" is answer enough, and a track token made of it remembers nothing. A linear head
that reads place and size from the token makes it worth remembering. The head is thrown away.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from refsam_export.model.config import EMBED_DIM

# As in `cells`: places run from -2 to 2, sizes are logarithms over a middling radius.
_PLACE_SCALE: Final = 4.0
_MIDDLE_RADIUS: Final = 0.105
_STEADY: Final = 0.2


class Whereabouts(NamedTuple):
    """What masks tell of their objects, behind any leading axes [...].

    poses: float32 [..., 3]: place of the mask's middle (x, y), -2 to 2, and the logarithm of its
    radius (of a disc of equal area, in parts of the side) over a middling one. visible: bool [...];
    poses mean nothing where it is false.
    """

    poses: Tensor
    visible: Tensor


def whereabouts(masks: Tensor) -> Whereabouts:
    """Return where the objects of square masks are; masks: [..., S, S], 0 or 1."""
    side = masks.shape[-1]
    centres = (torch.arange(side, device=masks.device) + 0.5) / side
    columns, rows = masks.sum(-2, dtype=torch.float32), masks.sum(-1, dtype=torch.float32)
    area = rows.sum(-1)
    some = area.clamp_min(1.0)
    x, y = (columns * centres).sum(-1) / some, (rows * centres).sum(-1) / some
    radius = (some / math.pi).sqrt() / side
    poses = torch.stack(
        [
            (x - 0.5) * _PLACE_SCALE,
            (y - 0.5) * _PLACE_SCALE,
            (radius / _MIDDLE_RADIUS).log(),
        ],
        dim=-1,
    )
    return Whereabouts(poses, area > 0)


class WhereHead(nn.Module):
    """One linear layer that reads place, size and visibility from a track token."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(EMBED_DIM, 4)

    def forward(self, tokens: Tensor, true: Whereabouts) -> Tensor:
        """Return the mean loss over tokens [..., 256] of the frames that `true` speaks of."""
        # Track tokens begin with unit length, as words do: bring their elements to 1.
        told = self.head(tokens * EMBED_DIM**0.5).float()
        wrong = functional.smooth_l1_loss(told[..., :3], true.poses, beta=_STEADY, reduction="none")
        seen = true.visible[..., None].expand_as(wrong)
        place = (wrong * seen).sum() / seen.sum().clamp_min(1)
        visible = functional.binary_cross_entropy_with_logits(told[..., 3], true.visible.float())
        return place + visible
