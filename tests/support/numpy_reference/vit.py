"""The image encoder with adapters and the reductions of the intermediate maps.

Sources: refsam-model 4.1, 4.2 and the first two lines of 5.1. Token maps are channels last
[h,w,D] up to the neck and channels first [C,h,w] after it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from numpy_reference.layers import (
    Array,
    Weights,
    conv1x1,
    conv2d,
    gelu,
    l2norm,
    layer_norm,
    layer_norm_2d,
    linear,
    relu,
    softmax,
)

if TYPE_CHECKING:
    from refsam_export.refsam.model.config import ModelConfig

ACTIVATIONS = {"relu": relu, "gelu": gelu}


def encode_image(weights: Weights, config: ModelConfig, image: Array) -> tuple[Array, Array]:
    """Encode one normalised frame [3,S,S].

    Returns:
        `image_embedding` [256,h,w] (F4) and `hda_features` [3,256,h,w] (F_1..F_3; [0,256,h,w]
        with `hda_levels` 1).
    """
    x = patch_embedding(weights, config, image) + weights["image_encoder.pos_embed"][0]
    hda_features: list[Array] = []
    for i in range(config.depth):
        x = block(weights, config, i, x)
        if i in config.intermediate_blocks:
            reduced = conv1x1(weights, f"fpn_conv.{len(hda_features)}", x.transpose(2, 0, 1))
            hda_features.append(l2norm(reduced, 0) if config.l2norm_intermediate else reduced)
    f4 = neck(weights, x.transpose(2, 0, 1))
    stacked = np.reshape(hda_features, (len(hda_features), *f4.shape))
    return l2norm(f4, 0) if config.l2norm_image else f4, stacked


def patch_embedding(weights: Weights, config: ModelConfig, image: Array) -> Array:
    """Map every patch of `image` [3,S,S] to one token: [h,w,D]."""
    name, side, grid = "image_encoder.patch_embed.proj", config.patch_size, config.grid_size
    kernels = weights[f"{name}.weight"].reshape(config.width, -1)
    x = np.empty((grid, grid, config.width))
    for i in range(grid):
        for j in range(grid):
            patch = image[:, i * side : (i + 1) * side, j * side : (j + 1) * side]
            x[i, j] = kernels @ patch.ravel() + weights[f"{name}.bias"]
    return x


def block(weights: Weights, config: ModelConfig, i: int, x: Array) -> Array:
    """Apply block `i` to `x` [h,w,D]."""
    name = f"image_encoder.blocks.{i}"
    y = layer_norm(weights, f"{name}.norm1", x, eps=1e-6)
    if i in config.global_blocks:
        y = adapted_attention(weights, config, i, y)
    else:
        windows = partition(y, config.window_size)
        windows = [adapted_attention(weights, config, i, window) for window in windows]
        y = merge(windows, (config.grid_size, config.grid_size))
    x = x + y
    z = layer_norm(weights, f"{name}.norm2", x, eps=1e-6)
    mlp = linear(weights, f"{name}.mlp.lin2", gelu(linear(weights, f"{name}.mlp.lin1", z)))
    if i not in config.adapter_blocks:
        return x + mlp
    return x + mlp + config.adapter_scale * adapter(weights, config, f"{name}.MLP_Adapter", z)


def partition(x: Array, size: int) -> list[Array]:
    """Cut `x` [h,w,D], zero-padded at the bottom and right, into [size,size,D] row by row."""
    height, width = x.shape[:2]
    padded = np.pad(x, ((0, -height % size), (0, -width % size), (0, 0)))
    return [
        padded[top : top + size, left : left + size]
        for top in range(0, height, size)
        for left in range(0, width, size)
    ]


def merge(windows: list[Array], grid_hw: tuple[int, int]) -> Array:
    """Put the windows of `partition` together again and drop the padding: [h,w,D]."""
    size = windows[0].shape[0]
    height, width = grid_hw
    per_row = math.ceil(width / size)
    rows = [
        np.concatenate(windows[first : first + per_row], axis=1)
        for first in range(0, len(windows), per_row)
    ]
    return np.concatenate(rows, axis=0)[:height, :width]


def adapted_attention(weights: Weights, config: ModelConfig, i: int, x: Array) -> Array:
    """Apply the attention of block `i`, then its Space_Adapter if it has one, to [S,S,D]."""
    name = f"image_encoder.blocks.{i}"
    y = attention(weights, config, f"{name}.attn", x)
    if i not in config.adapter_blocks:
        return y
    return y + adapter(weights, config, f"{name}.Space_Adapter", y)


def adapter(weights: Weights, config: ModelConfig, name: str, x: Array) -> Array:
    """Apply an adapter's two layers, without any skip or scale."""
    hidden = ACTIVATIONS[config.adapter_act](linear(weights, f"{name}.D_fc1", x))
    return linear(weights, f"{name}.D_fc2", hidden)


def attention(weights: Weights, config: ModelConfig, name: str, x: Array) -> Array:
    """Let all positions of a square `x` [S,S,D] attend to each other, one head at a time."""
    size, heads, head_dim = x.shape[0], config.num_heads, config.head_dim
    qkv = linear(weights, f"{name}.qkv", x).reshape(size * size, 3, heads, head_dim)
    out = np.empty((size * size, heads, head_dim))
    for head in range(heads):
        q, k, v = qkv[:, 0, head], qkv[:, 1, head], qkv[:, 2, head]
        relative = relative_position(
            q.reshape(size, size, head_dim),
            weights[f"{name}.rel_pos_h"],
            weights[f"{name}.rel_pos_w"],
        )
        out[:, head] = softmax(q / math.sqrt(head_dim) @ k.T + relative) @ v
    return projection(weights, f"{name}.proj", out.reshape(size, size, config.width))


def projection(weights: Weights, name: str, x: Array) -> Array:
    """Apply the output projection of an attention, with LoRA beside it where there is one (4.3)."""
    if f"{name}.w_a.weight" not in weights:
        return linear(weights, name, x)
    low_rank = x @ weights[f"{name}.w_a.weight"].T
    return linear(weights, f"{name}.w", x) + low_rank @ weights[f"{name}.w_b.weight"].T


def relative_position(q: Array, rel_pos_h: Array, rel_pos_w: Array) -> Array:
    """Return `relh + relw` [S*S,S*S] for un-scaled queries [S,S,hd] and tables [2S-1,hd]."""
    size = q.shape[0]
    bias = np.empty((size, size, size, size))
    for i in range(size):
        for j in range(size):
            relh = [q[i, j] @ rel_pos_h[i - row + size - 1] for row in range(size)]
            relw = [q[i, j] @ rel_pos_w[j - column + size - 1] for column in range(size)]
            bias[i, j] = np.add.outer(relh, relw)
    return bias.reshape(size * size, size * size)


def neck(weights: Weights, x: Array) -> Array:
    """Reduce `x` [D,h,w] to [256,h,w], not yet L2-normalised."""
    x = conv2d(weights["image_encoder.neck.0.weight"], x)
    x = layer_norm_2d(weights, "image_encoder.neck.1", x)
    x = conv2d(weights["image_encoder.neck.2.weight"], x)
    return layer_norm_2d(weights, "image_encoder.neck.3", x)
