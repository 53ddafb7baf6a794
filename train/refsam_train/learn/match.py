"""An auxiliary task: a vector shall point the way of the features of the cells that it names.

Sentences learn language this way, and track tokens learn what to remember. A mask alone does not
ask the mask token which object it marks, so a track token computed from it would remember nothing.
A token that must find its object among the cells of the next frame learns the object's looks and
place. Only the scale and the bias of this task are thrown away after training.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

# Few cells are named: with a cosine of 0 the bias begins at a probability of 2 %.
_SCALE: Final = 10.0
_BIAS: Final = -4.0
_WEIGHT: Final = 0.2


class Match(nn.Module):
    """Tells named cells by a cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(_SCALE))
        self.bias = nn.Parameter(torch.tensor(_BIAS))

    def forward(self, embedding: Tensor, vector: Tensor, named: Tensor) -> Tensor:
        """Return the cross-entropy, summed over cells and divided by how many are named.

        Args:
            embedding: [E, 256, h, w], of unit length along 256.
            vector: [E, 256], of any length above 0.
            named: float [E, H, W], square masks; a cell is named as far as it is covered.
        """
        unit = functional.normalize(vector.float(), dim=-1)
        cosine = (embedding * unit[..., None, None]).sum(1).float()
        logits = self.scale * cosine + self.bias
        target = functional.avg_pool2d(named, named.shape[-1] // logits.shape[-1])
        entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        return entropy / target.sum().clamp_min(1.0) * _WEIGHT
