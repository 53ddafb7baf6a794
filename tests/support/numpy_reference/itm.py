"""The Implicit Tracking Module in its two forms (refsam-model 7.1 and 7.2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from numpy_reference.layers import Array, Weights, layer_norm, linear, relu, softmax

if TYPE_CHECKING:
    from refsam_export.refsam.model.config import ModelConfig

NUM_HEADS = 8


def next_track_token(
    weights: Weights, config: ModelConfig, main_mask_token: Array, track_token: Array | None
) -> Array:
    """Return the track token [256] for the next frame.

    Args:
        weights: Canonical weights.
        config: Gives `itm` only.
        main_mask_token: E_m [256] of this frame.
        track_token: The token [256] that this frame was decoded with, or None; only `qim` reads it.
    """
    return (
        qim(weights, main_mask_token, track_token)
        if config.itm == "qim"
        else ffn(weights, main_mask_token)
    )


def ffn(weights: Weights, main_mask_token: Array) -> Array:
    """Apply the paper's form."""
    hidden = relu(linear(weights, "track_token_mlp.linear1", main_mask_token))
    update = linear(weights, "track_token_mlp.linear2", hidden)
    return layer_norm(weights, "track_token_mlp.norm", main_mask_token + update, eps=1e-5)


def qim(weights: Weights, main_mask_token: Array, track_token: Array | None) -> Array:
    """Apply the released form, its self-attention written for any number of tokens."""
    name = "temporal_aggregation_network"
    u = main_mask_token if track_token is None else main_mask_token + track_token
    attended = self_attention(weights, f"{name}.self_attn", u[None])[0]
    a = layer_norm(weights, f"{name}.norm1", u + attended, eps=1e-5)
    hidden = relu(linear(weights, f"{name}.linear1", a))
    b = layer_norm(
        weights, f"{name}.norm2", a + linear(weights, f"{name}.linear2", hidden), eps=1e-5
    )
    hidden = relu(linear(weights, f"{name}.linear_feat1", b))
    update = linear(weights, f"{name}.linear_feat2", hidden)
    return layer_norm(weights, f"{name}.norm_feat", u + update, eps=1e-5)


def self_attention(weights: Weights, name: str, x: Array) -> Array:
    """Let tokens `x` [n,256] attend to each other; q, k and v are stacked in one projection."""
    qkv = x @ weights[f"{name}.in_proj_weight"].T + weights[f"{name}.in_proj_bias"]
    q, k, v = np.split(qkv, 3, axis=1)
    head_dim = q.shape[1] // NUM_HEADS
    out = np.empty_like(q)
    for head in range(NUM_HEADS):
        part = slice(head * head_dim, (head + 1) * head_dim)
        out[:, part] = softmax(q[:, part] @ k[:, part].T / math.sqrt(head_dim)) @ v[:, part]
    return linear(weights, f"{name}.out_proj", out)
