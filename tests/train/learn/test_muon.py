"""Muon: updates of matrices, and AdamW untouched for everything else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from refsam_train.learn.muon import MuonAdamW, orthogonal
from refsam_train.learn.optimiser import is_matrix, optimiser_of
from refsam_train.recipe import Optimiser


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 5)])
def test_orthogonal_keeps_singular_vectors_and_levels_singular_values(
    shape: tuple[int, int],
) -> None:
    """Against the SVD in float64; the quintic ends between 0.68 and 1.14."""
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    values = u.mT @ orthogonal(matrices) @ v.mT
    diagonal = torch.diagonal(values, dim1=1, dim2=2)
    assert ((diagonal > 0.6) & (diagonal < 1.2)).all()
    assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-10


def test_a_matrix_step_is_momentum_made_orthogonal_and_scaled() -> None:
    torch.manual_seed(1)
    weight = nn.Parameter(torch.randn(4, 8))
    groups = [{"params": [weight], "lr": 0.1, "matrix": True}]
    optimiser = MuonAdamW(groups, weight_decay=0.01)
    expected, momentum = weight.detach().clone(), torch.zeros(4, 8)
    for _ in range(3):
        gradient = torch.randn(4, 8)
        weight.grad = gradient.clone()
        optimiser.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        ahead = 0.05 * gradient + 0.95 * momentum
        update = orthogonal(ahead[None])[0] * 0.2 * 8**0.5
        expected = expected * (1 - 0.1 * 0.01) - 0.1 * update
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-6)


def test_everything_else_is_updated_as_by_adamw() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    twin = copy.deepcopy(model)
    settings = Optimiser(learning_rate=1e-2, matrix_rate=1e-2)
    named = {name: (parameter, 1e-2) for name, parameter in model.named_parameters()}
    ours = optimiser_of(named, settings)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.01)
    for _ in range(3):
        gradients = [torch.randn_like(p) for p in model.parameters()]
        for network, optimiser in ((model, ours), (twin, theirs)):
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
            optimiser.step()
    for (name, mine), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-5, atol=1e-7) == (name != "0.weight")


def test_what_counts_as_a_matrix() -> None:
    matrix, vector = torch.zeros(3, 4), torch.zeros(3)
    assert is_matrix("image_encoder.blocks.0.attn.qkv.weight", matrix)
    assert is_matrix(
        "mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight", matrix
    )
    assert not is_matrix("image_encoder.blocks.0.attn.rel_pos_h", matrix)
    assert not is_matrix("mask_decoder.mask_tokens.weight", matrix)
    assert not is_matrix("text_encoder.shared.weight", matrix)
    assert not is_matrix("auxiliary.heads.0.weight", matrix)
    assert not is_matrix("resizer.0.bias", vector)
    assert not is_matrix("fpn_conv.0.weight", torch.zeros(3, 4, 1, 1))


def test_without_a_matrix_rate_no_group_is_muons() -> None:
    weight = nn.Parameter(torch.zeros(3, 4))
    optimiser = optimiser_of({"a.weight": (weight, 1e-3)}, Optimiser(learning_rate=1e-3))
    assert [group["matrix"] for group in optimiser.param_groups] == [False]


def test_matrices_of_one_shape_get_their_own_updates() -> None:
    torch.manual_seed(3)
    first, second = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(3, 5))
    alone = copy.deepcopy(second)
    second.grad, first.grad = torch.randn(3, 5), torch.randn(3, 5)
    alone.grad = second.grad.clone()
    for members in ([first, second], [alone]):
        MuonAdamW([{"params": members, "lr": 0.1, "matrix": True}], weight_decay=0.0).step()
    torch.testing.assert_close(second, alone)
