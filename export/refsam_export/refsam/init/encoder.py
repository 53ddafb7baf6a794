"""How `realistic_init` fills the image encoder: sharp heads, outlier channels, live rel-pos terms.

All of it is arithmetic, nothing is tuned by running the model: `channel_scale` tells how large each
channel of the residual stream is after so many blocks, and whatever reads the stream divides by it,
as a trained network has learned to.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from refsam_export.refsam.init.draw import (
    Draw,
    Rule,
    after_activation,
    centre,
    linear,
    noise,
    seeded,
)
from refsam_export.refsam.model.config import ModelConfig

BRANCH = 0.3
"""Size of what one MLP, or one attention, adds to a residual stream that starts at size 1."""

OUTLIER_SHARES = (1.0, -0.8, 0.6, -0.5)
"""Outlier channels relative to the largest. Two signs, or the mean that LayerNorm subtracts would
follow them."""

OUTLIER_RATIO = 60.0
"""Typical value of the largest outlier over the largest value of an ordinary channel."""

OUTLIER_SOURCES = 128
"""Hidden units that feed an outlier channel: so many that it never comes near zero."""

GELU_MEAN, GELU_STD = 0.282, 0.588
"""Of the GELU of a standard normal value."""

REL_POS = 0.5
"""Size of one axis of the rel-pos terms over that of the content scores."""

WAVE_GAIN, BRIGHTNESS_GAIN = 0.06, 0.03
"""Patch embedding: response to a cosine wave and to the mean of a patch, which is much larger."""

NUM_WAVES = 4
"""Cosine waves per axis in a patch filter. More would make the features change at the slightest
motion."""

POSITION_SIZE = 0.6
"""Size of the position embedding; the content of a frame adds about 0.75."""


def outliers(config: ModelConfig, seed: int) -> dict[int, tuple[int, float]]:
    """Return, for each outlier channel, the block whose MLP makes it and its typical value."""
    generator = seeded(seed, "outlier channels")
    channels = torch.randperm(config.width, generator=generator)[: len(OUTLIER_SHARES)]
    blocks = [config.depth // 2 - 1] * 2 + [3 * config.depth // 4] * 2
    ordinary = stream_size(config.depth) * math.sqrt(2 * math.log(config.grid_size**2))
    return {
        channel: (block, share * OUTLIER_RATIO * ordinary)
        for channel, block, share in zip(channels.tolist(), blocks, OUTLIER_SHARES, strict=True)
    }


def stream_size(num_blocks: int) -> float:
    """Return the size of an ordinary channel of the residual stream after `num_blocks` blocks."""
    return math.sqrt(1 + 2 * BRANCH**2 * num_blocks)


def channel_scale(config: ModelConfig, seed: int, num_blocks: int) -> Tensor:
    """Return the size of each channel [D] of the residual stream after `num_blocks` blocks."""
    scale = torch.full((config.width,), stream_size(num_blocks), dtype=torch.float64)
    for channel, (block, value) in outliers(config, seed).items():
        if block < num_blocks:
            scale[channel] = abs(value)
    return scale


def _norm_weight(draw: Draw) -> Tensor:
    scale = channel_scale(draw.config, draw.seed, draw.index)
    level = scale.square().mean().sqrt() / scale
    return level.float() * (1 + 0.2 * draw.noise())


def _stream_reduction(draw: Draw, num_blocks: int) -> Tensor:
    scale = channel_scale(draw.config, draw.seed, num_blocks).float()
    return draw.linear(1.0) / scale[:, None, None]


def _neck_weight(draw: Draw) -> Tensor:
    return _stream_reduction(draw, draw.config.depth)


def _fpn_weight(draw: Draw) -> Tensor:
    return _stream_reduction(draw, draw.config.intermediate_blocks[draw.index] + 1)


def _query_size(config: ModelConfig, block: int) -> float:
    """Return the size of the elements of q and of k.

    Independent normal scores of standard deviation 1.8 + 0.13 ln(keys) have 0.55 of the entropy of
    uniform attention; real ones depend on each other, most of all inside a window.
    """
    is_global = block in config.global_blocks
    side, excess = (config.grid_size, 1.05) if is_global else (config.window_size, 1.32)
    scores = excess * (1.8 + 0.13 * math.log(side**2))
    return math.sqrt(scores / math.sqrt(1 + 2 * REL_POS**2))


def _qkv_weight(draw: Draw) -> Tensor:
    query = _query_size(draw.config, draw.index)
    gain = torch.tensor([query, query, 1.0]).repeat_interleave(draw.config.width)
    return draw.linear(1.0) * gain[:, None]


def _rel_pos(draw: Draw) -> Tensor:
    query = _query_size(draw.config, draw.index)
    return draw.noise() * (REL_POS * query / math.sqrt(draw.config.head_dim))


def _lin2_weight(draw: Draw) -> Tensor:
    weight = centre(draw.linear(BRANCH / GELU_STD), dim=1)
    num_hidden = draw.shape[1]
    num_sources = min(OUTLIER_SOURCES, num_hidden)
    for channel, (block, value) in outliers(draw.config, draw.seed).items():
        if block == draw.index:
            sources = draw.noise(num_hidden).topk(num_sources).indices
            weight[channel] = 0
            weight[channel, sources] = value / (GELU_MEAN * num_sources)
    return weight


def _pos_embed(draw: Draw) -> Tensor:
    """Return one plane wave per channel: smooth, with some variation inside a window too."""
    grid, width = draw.config.grid_size, draw.config.width
    waves = draw.noise(3, width).double()
    vertical, horizontal = waves[:2] * (1 + grid / 16)
    place = (torch.arange(grid, dtype=torch.float64)[:, None] + 0.5) / grid
    phase = 10 * waves[2]
    cycles: Tensor = (place * vertical)[:, None] + (place * horizontal)[None] + phase
    wave = POSITION_SIZE * math.sqrt(2) * torch.cos(2 * math.pi * cycles)
    return wave.float()[None]


def _patch_weight(draw: Draw) -> Tensor:
    """Return filters made of slow cosine waves, as large in a frame as the patch is smooth."""
    size = draw.config.patch_size
    order = torch.arange(NUM_WAVES, dtype=torch.float64)
    place = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    waves = torch.cos(math.pi * order[:, None] * place) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    amount = WAVE_GAIN * draw.noise(draw.shape[0], 3, NUM_WAVES, NUM_WAVES).double()
    amount[:, :, 0, 0] *= BRIGHTNESS_GAIN / WAVE_GAIN
    filters: Tensor = waves.T @ amount @ waves
    return filters.float()


_BLOCK = r"image_encoder\.blocks\.(?P<index>\d+)\."

ENCODER_RULES: tuple[tuple[str, Rule], ...] = (
    (r"image_encoder\.pos_embed", _pos_embed),
    (r"image_encoder\.patch_embed\.proj\.weight", _patch_weight),
    (_BLOCK + r"norm[12]\.weight", _norm_weight),
    (_BLOCK + r"attn\.qkv\.weight", _qkv_weight),
    (_BLOCK + r"attn\.rel_pos_[hw]", _rel_pos),
    # Values shrink to about 0.55 in the average over keys.
    (_BLOCK + r"attn\.proj\.weight", linear(BRANCH * 0.8 / 0.55)),
    (_BLOCK + r"mlp\.lin2\.weight", _lin2_weight),
    # What the serial adapter reads is the attention branch alone.
    (_BLOCK + r"Space_Adapter\.D_fc1\.weight", linear(1.0 / BRANCH)),
    (_BLOCK + r"Space_Adapter\.D_fc2\.weight", after_activation(0.2)),
    (_BLOCK + r"MLP_Adapter\.D_fc2\.weight", after_activation(0.4)),
    (r"image_encoder\.neck\.0\.weight", _neck_weight),
    (r"image_encoder\.neck\.[13]\.weight", noise(0.2, mean=1.0)),
    (r"fpn_conv\.(?P<index>\d)\.weight", _fpn_weight),
)
"""Patterns of whole keys; the first that fits counts. Other keys follow `realistic_init`'s."""
