"""The mask decoder with the track token (refsam-model 6.1 to 6.4)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from numpy_reference.layers import (
    Array,
    Weights,
    gelu,
    layer_norm,
    layer_norm_2d,
    linear,
    map_from_pixels,
    pixels_from_map,
    relu,
    softmax,
    transposed_conv2x2,
)

if TYPE_CHECKING:
    from refsam_export.refsam.model.config import ModelConfig

NUM_HEADS = 8
NUM_LAYERS = 2
NUM_MASKS = 4


def position_encoding(gaussian: Array, size: int) -> Array:
    """Return the image position encoding [256,size,size] from `gaussian` [2,128]."""
    encoding = np.empty((2 * gaussian.shape[1], size, size))
    for i in range(size):
        for j in range(size):
            xy = np.array([(j + 0.5) / size, (i + 0.5) / size])
            p = 2 * math.pi * (2 * xy - 1) @ gaussian
            encoding[:, i, j] = np.concatenate([np.sin(p), np.cos(p)])
    return encoding


def decode(
    weights: Weights,
    config: ModelConfig,
    image_embedding: Array,
    dense: Array,
    words: Array,
    track_token: Array | None,
) -> tuple[Array, Array, Array]:
    """Decode one expression on one frame.

    Args:
        weights: Canonical weights.
        config: Gives `grid_size` only.
        image_embedding: F4 [256,h,w].
        dense: Dense prompt of HDA [256,h,w].
        words: [N,256], without the sentence.
        track_token: [256] of the previous frame, or None in the first frame.

    Returns:
        Logits [4,4h,4w], `iou` [4] and the main mask token E_m [256].
    """
    track = [] if track_token is None else [track_token]
    learned = ("iou_token", "mask_tokens")
    tokens = [weights[f"mask_decoder.{name}.weight"] for name in learned]
    t0 = np.vstack([*tokens, *track, words])
    pe = pixels_from_map(position_encoding(weights["pe.gaussian"], config.grid_size))
    q, src = transformer(weights, t0, pixels_from_map(image_embedding + dense), pe)
    logits = mask_logits(weights, q, map_from_pixels(src, image_embedding.shape))
    return logits, mlp(weights, "mask_decoder.iou_prediction_head", q[0]), q[1]


def transformer(weights: Weights, t0: Array, src: Array, pe: Array) -> tuple[Array, Array]:
    """Run the two-way transformer on tokens [n,256] and image [h*w,256]; return both."""
    q = t0
    for layer in range(NUM_LAYERS):
        name = f"mask_decoder.transformer.layers.{layer}"
        if layer == 0:
            q = attention(weights, f"{name}.self_attn", t0, t0, t0)
        else:
            q = q + attention(weights, f"{name}.self_attn", q + t0, q + t0, q)
        q = norm(weights, f"{name}.norm1", q)
        to_image = f"{name}.cross_attn_token_to_image"
        q = norm(weights, f"{name}.norm2", q + attention(weights, to_image, q + t0, src + pe, src))
        hidden = relu(linear(weights, f"{name}.mlp.lin1", q))
        q = norm(weights, f"{name}.norm3", q + linear(weights, f"{name}.mlp.lin2", hidden))
        to_tokens = f"{name}.cross_attn_image_to_token"
        update = attention(weights, to_tokens, src + pe, q + t0, q)
        src = norm(weights, f"{name}.norm4", src + update)
    name = "mask_decoder.transformer"
    update = attention(weights, f"{name}.final_attn_token_to_image", q + t0, src + pe, src)
    return norm(weights, f"{name}.norm_final_attn", q + update), src


def norm(weights: Weights, name: str, x: Array) -> Array:
    """Apply a LayerNorm of the transformer."""
    return layer_norm(weights, name, x, eps=1e-5)


def attention(weights: Weights, name: str, queries: Array, keys: Array, values: Array) -> Array:
    """Apply one projected attention to rows of 256 channels, one head at a time."""
    q = linear(weights, f"{name}.q_proj", queries)
    k = linear(weights, f"{name}.k_proj", keys)
    v = linear(weights, f"{name}.v_proj", values)
    head_dim = q.shape[1] // NUM_HEADS
    out = np.empty_like(q)
    for head in range(NUM_HEADS):
        part = slice(head * head_dim, (head + 1) * head_dim)
        scores = q[:, part] @ k[:, part].T / math.sqrt(head_dim)
        out[:, part] = softmax(scores) @ v[:, part]
    return linear(weights, f"{name}.out_proj", out)


def mask_logits(weights: Weights, q: Array, src: Array) -> Array:
    """Return the four masks' logits [4,4h,4w] of tokens `q` [n,256] and image `src` [256,h,w]."""
    name = "mask_decoder.output_upscaling"
    half = layer_norm_2d(weights, f"{name}.1", transposed_conv2x2(weights, f"{name}.0", src))
    upscaled = gelu(transposed_conv2x2(weights, f"{name}.3", gelu(half)))
    logits = np.empty((NUM_MASKS, *upscaled.shape[1:]))
    for i in range(NUM_MASKS):
        channel_weights = mlp(weights, f"mask_decoder.output_hypernetworks_mlps.{i}", q[1 + i])
        logits[i] = np.einsum("c,chw->hw", channel_weights, upscaled)
    return logits


def mlp(weights: Weights, name: str, x: Array) -> Array:
    """Apply a three-layer ReLU network."""
    x = relu(linear(weights, f"{name}.layers.0", x))
    x = relu(linear(weights, f"{name}.layers.1", x))
    return linear(weights, f"{name}.layers.2", x)
