"""Losses against values worked out by hand and against loops over pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from refsam_train.learn.losses import dice_loss, focal_loss, mask_iou


def test_dice_of_two_pixels_by_hand() -> None:
    # p = 0.5, 0.75; g = 1, 0: 1 - (2 * 0.5 + 1) / (1.25 + 1 + 1)
    logits = torch.tensor([[0.0, math.log(3.0)]])
    assert dice_loss(logits, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(1 - 2 / 3.25)


def test_dice_of_an_empty_mask_is_small_only_when_nothing_is_found() -> None:
    empty = torch.zeros(4, 4)
    assert dice_loss(torch.full((4, 4), -30.0), empty).item() == pytest.approx(0.0, abs=1e-6)
    assert dice_loss(torch.full((4, 4), 30.0), empty).item() == pytest.approx(1 - 1 / 17)


def test_focal_of_two_pixels_by_hand() -> None:
    # Pixel 1: p_t = 0.5, a_t = 0.25. Pixel 2: p = 0.75, g = 0, so p_t = 0.25, a_t = 0.75.
    logits = torch.tensor([[0.0, math.log(3.0)]])
    expected = (0.25 * 0.25 * math.log(2.0) + 0.75 * 0.75**2 * math.log(4.0)) / 2
    assert focal_loss(logits, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(expected)


def test_losses_equal_loops_over_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 7, generator=generator) * 4
    target = (torch.rand(2, 3, 5, 7, generator=generator) < 0.3).float()
    dice, focal, iou = (f(logits, target) for f in (dice_loss, focal_loss, mask_iou))
    for frame in range(2):
        for row in range(3):
            expected = _slow_terms(logits[frame, row], target[frame, row])
            found = [term[frame, row].item() for term in (dice, focal, iou)]
            assert found == pytest.approx(expected, rel=1e-5)


def test_iou_of_two_empty_masks_is_one() -> None:
    assert mask_iou(torch.full((2, 2), -1.0), torch.zeros(2, 2)).item() == 1.0
    assert mask_iou(torch.full((2, 2), 1.0), torch.zeros(2, 2)).item() == 0.0


def test_a_huge_wrong_logit_gives_a_finite_gradient() -> None:
    logits = torch.tensor([[300.0, -300.0]], requires_grad=True)
    target = torch.tensor([[0.0, 1.0]])
    (dice_loss(logits, target) + focal_loss(logits, target)).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() > 0


def _slow_terms(logits: Tensor, target: Tensor) -> list[float]:
    overlap = found = wanted = focal = 0.0
    both = either = 0
    for x, g in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        overlap, found, wanted = overlap + p * g, found + p, wanted + g
        p_t, a_t = (p, 0.25) if g else (1 - p, 0.75)
        focal += a_t * (1 - p_t) ** 2 * -math.log(p_t)
        both, either = both + (x > 0 and g == 1), either + (x > 0 or g == 1)
    dice = 1 - (2 * overlap + 1) / (found + wanted + 1)
    return [dice, focal / logits.numel(), both / either]
