"""Dice and focal loss on mask logits (refsam-model 9.3), per frame and expression."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

FOCAL_ALPHA = 0.25


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return 1 - (2 sum(p g) + 1) / (sum(p) + sum(g) + 1) over the last two axes.

    Args:
        logits: float [..., H, W].
        target: float [..., H, W], 0 to 1 (fractions where pixels were averaged).
    """
    probability = torch.sigmoid(logits)
    overlap = (probability * target).sum((-2, -1))
    total = probability.sum((-2, -1)) + target.sum((-2, -1))
    return 1.0 - (2.0 * overlap + 1.0) / (total + 1.0)


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean of a_t (1 - p_t)^2 BCE over the last two axes; arguments as `dice_loss`."""
    probability = torch.sigmoid(logits)
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    missed = probability + target - 2.0 * probability * target  # 1 - p_t
    balance = (1.0 - FOCAL_ALPHA) + (2.0 * FOCAL_ALPHA - 1.0) * target
    return (balance * missed * missed * entropy).mean((-2, -1))


def mask_iou(logits: Tensor, target: Tensor) -> Tensor:
    """Return the IoU of the decided masks over the last two axes, 1 if both are empty.

    Args:
        logits: float [..., H, W], a pixel belongs to the mask above 0.
        target: float [..., H, W], a pixel belongs to the mask from 0.5 on.
    """
    predicted, annotated = logits > 0.0, target >= 0.5
    both = (predicted & annotated).sum((-2, -1)).float()
    either = (predicted | annotated).sum((-2, -1)).float()
    return torch.where(either > 0, both / either.clamp_min(1.0), torch.ones_like(both))
