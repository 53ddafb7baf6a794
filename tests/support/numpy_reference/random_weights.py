"""Random weights with every tensor non-zero, from the specification's key and shape tables.

Sources: refsam-model 3.3, 4.3, 5.2, 6.5, 7.1, 7.2, 8.4, 8.5. SAM starts position embeddings and
relative tables at zero, which would hide every error in their use (1.1): nothing here is zero.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from numpy_reference.layers import EMBED_DIM, Array

if TYPE_CHECKING:
    from refsam_export.refsam.model.config import ModelConfig

Shapes = dict[str, tuple[int, ...]]


def normal(*shape: int, seed: int) -> Array:
    """Draw one float64 array of standard normal values."""
    return np.random.default_rng(seed).normal(size=shape)


def fill(shapes: Shapes, seed: int) -> dict[str, Array]:
    """Draw float64 weights of these shapes such that signals neither die nor explode."""
    generator = np.random.default_rng(seed)
    return {key: _scaled(key, generator.normal(size=shape)) for key, shape in shapes.items()}


def _scaled(key: str, values: Array) -> Array:
    if values.ndim == 1:
        return 0.2 * values + (1.0 if key.endswith(".weight") else 0.0)
    if "pos" in key.rsplit(".", 1)[-1]:
        return 0.3 * values
    if values.ndim == 2 and _is_table(key):
        return values
    fan_in = values.shape[0] if "output_upscaling" in key else math.prod(values.shape[1:])
    return values / math.sqrt(fan_in)


def _is_table(key: str) -> bool:
    tables = ("iou_token", "mask_tokens", "gaussian", "shared", "relative_attention_bias")
    return any(name in key for name in tables)


def model_shapes(config: ModelConfig, text_dim: int) -> Shapes:
    """Return the shapes of a weights file for text features of width `text_dim`."""
    return {
        **encoder_shapes(config),
        **hda_shapes(config),
        **decoder_shapes(config),
        **itm_shapes(config),
        **resizer_shapes(text_dim, config.resizer_hidden),
        "pe.gaussian": (2, EMBED_DIM // 2),
    }


def resizer_shapes(text_dim: int, hidden: tuple[int, ...] | None) -> Shapes:
    """Return the shapes below `resizer.` for these hidden widths; None: one of d/2."""
    widths = [text_dim, *((text_dim // 2,) if hidden is None else hidden), EMBED_DIM]
    shapes: Shapes = {}
    for layer in range(len(widths) - 1):
        shapes |= _affine(f"resizer.{2 * layer}", (widths[layer + 1], widths[layer]))
    return shapes


def encoder_shapes(config: ModelConfig) -> Shapes:
    """Return the shapes below `image_encoder.`, adapters included."""
    name, width, grid = "image_encoder", config.width, config.grid_size
    shapes: Shapes = {
        f"{name}.pos_embed": (1, grid, grid, width),
        **_affine(f"{name}.patch_embed.proj", (width, 3, config.patch_size, config.patch_size)),
        f"{name}.neck.0.weight": (EMBED_DIM, width, 1, 1),
        **_norm(f"{name}.neck.1", EMBED_DIM),
        f"{name}.neck.2.weight": (EMBED_DIM, EMBED_DIM, 3, 3),
        **_norm(f"{name}.neck.3", EMBED_DIM),
    }
    for i in range(config.depth):
        shapes |= _block_shapes(config, i)
    return shapes


def _block_shapes(config: ModelConfig, i: int) -> Shapes:
    name, width, hidden = f"image_encoder.blocks.{i}", config.width, 4 * config.width
    side = config.grid_size if i in config.global_blocks else config.window_size
    shapes: Shapes = {
        **_norm(f"{name}.norm1", width),
        **_norm(f"{name}.norm2", width),
        **_affine(f"{name}.attn.qkv", (3 * width, width)),
        **_affine(f"{name}.attn.proj", (width, width)),
        f"{name}.attn.rel_pos_h": (2 * side - 1, config.head_dim),
        f"{name}.attn.rel_pos_w": (2 * side - 1, config.head_dim),
        **_affine(f"{name}.mlp.lin1", (hidden, width)),
        **_affine(f"{name}.mlp.lin2", (width, hidden)),
    }
    if i in config.adapter_blocks:
        for adapter in ("Space_Adapter", "MLP_Adapter"):
            shapes |= _affine(f"{name}.{adapter}.D_fc1", (width // 4, width))
            shapes |= _affine(f"{name}.{adapter}.D_fc2", (width, width // 4))
    return shapes


def hda_shapes(config: ModelConfig) -> Shapes:
    """Return the shapes of the reductions and of the Dense Attention convolutions."""
    if config.hda_levels == 0:
        return {} if config.dense_origin else {"no_mask_embed.weight": (1, EMBED_DIM)}
    shapes = _affine("dense_conv", (EMBED_DIM, 2 * EMBED_DIM, 1, 1))
    for level in range(config.hda_levels - 1):
        shapes |= _affine(f"fpn_conv.{level}", (EMBED_DIM, config.width, 1, 1))
        shapes |= _affine(f"dense_conv2.{level}", (EMBED_DIM, 2 * EMBED_DIM, 1, 1))
    return shapes


def decoder_shapes(config: ModelConfig) -> Shapes:
    """Return the shapes below `mask_decoder.`."""
    name, dim = "mask_decoder", EMBED_DIM
    shapes: Shapes = {f"{name}.iou_token.weight": (1, dim), f"{name}.mask_tokens.weight": (4, dim)}
    for layer in (f"{name}.transformer.layers.{i}" for i in range(2)):
        shapes |= _attention(f"{layer}.self_attn", dim)
        shapes |= _attention(f"{layer}.cross_attn_token_to_image", dim // 2)
        shapes |= _attention(f"{layer}.cross_attn_image_to_token", dim // 2)
        shapes |= _affine(f"{layer}.mlp.lin1", (config.decoder_mlp_dim, dim))
        shapes |= _affine(f"{layer}.mlp.lin2", (dim, config.decoder_mlp_dim))
        for i in range(1, 5):
            shapes |= _norm(f"{layer}.norm{i}", dim)
    shapes |= _attention(f"{name}.transformer.final_attn_token_to_image", dim // 2)
    shapes |= _norm(f"{name}.transformer.norm_final_attn", dim)
    for index, (inputs, outputs) in {0: (dim, 64), 3: (64, 32)}.items():
        shapes[f"{name}.output_upscaling.{index}.weight"] = (inputs, outputs, 2, 2)
        shapes[f"{name}.output_upscaling.{index}.bias"] = (outputs,)
    shapes |= _norm(f"{name}.output_upscaling.1", 64)
    for i in range(4):
        shapes |= _head(f"{name}.output_hypernetworks_mlps.{i}", 32)
    return shapes | _head(f"{name}.iou_prediction_head", 4)


def itm_shapes(config: ModelConfig) -> Shapes:
    """Return the shapes of the Implicit Tracking Module."""
    if config.itm == "qim":
        return _qim_shapes("temporal_aggregation_network", config.itm_dim)
    return {
        **_affine("track_token_mlp.linear1", (config.itm_dim, EMBED_DIM)),
        **_affine("track_token_mlp.linear2", (EMBED_DIM, config.itm_dim)),
        **_norm("track_token_mlp.norm", EMBED_DIM),
    }


def _qim_shapes(name: str, hidden: int) -> Shapes:
    shapes: Shapes = {
        f"{name}.self_attn.in_proj_weight": (3 * EMBED_DIM, EMBED_DIM),
        f"{name}.self_attn.in_proj_bias": (3 * EMBED_DIM,),
        **_affine(f"{name}.self_attn.out_proj", (EMBED_DIM, EMBED_DIM)),
    }
    for stage in ("linear", "linear_feat"):
        shapes |= _affine(f"{name}.{stage}1", (hidden, EMBED_DIM))
        shapes |= _affine(f"{name}.{stage}2", (EMBED_DIM, hidden))
    for norm in ("norm1", "norm2", "norm_feat"):
        shapes |= _norm(f"{name}.{norm}", EMBED_DIM)
    return shapes


def t5_shapes(
    vocabulary: int,
    d_model: int,
    d_ff: int,
    *,
    num_heads: int,
    d_kv: int,
    num_layers: int,
    gated: bool = False,
) -> Shapes:
    """Return the shapes of a T5 encoder below `text_encoder.`."""
    shapes: Shapes = {
        "text_encoder.shared.weight": (vocabulary, d_model),
        "text_encoder.encoder.final_layer_norm.weight": (d_model,),
    }
    inner = num_heads * d_kv
    for i in range(num_layers):
        name = f"text_encoder.encoder.block.{i}.layer"
        for part in "qkv":
            shapes[f"{name}.0.SelfAttention.{part}.weight"] = (inner, d_model)
        shapes[f"{name}.0.SelfAttention.o.weight"] = (d_model, inner)
        for part in ("wi_0", "wi_1") if gated else ("wi",):
            shapes[f"{name}.1.DenseReluDense.{part}.weight"] = (d_ff, d_model)
        shapes[f"{name}.1.DenseReluDense.wo.weight"] = (d_model, d_ff)
        shapes |= {f"{name}.{j}.layer_norm.weight": (d_model,) for j in range(2)}
    first = "text_encoder.encoder.block.0.layer.0.SelfAttention"
    return shapes | {f"{first}.relative_attention_bias.weight": (32, num_heads)}


def _affine(name: str, shape: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _norm(name: str, width: int) -> Shapes:
    return _affine(name, (width,))


def _attention(name: str, inner: int) -> Shapes:
    shapes = _affine(f"{name}.out_proj", (EMBED_DIM, inner))
    for part in "qkv":
        shapes |= _affine(f"{name}.{part}_proj", (inner, EMBED_DIM))
    return shapes


def _head(name: str, outputs: int) -> Shapes:
    shapes = _affine(f"{name}.layers.2", (outputs, EMBED_DIM))
    for i in range(2):
        shapes |= _affine(f"{name}.layers.{i}", (EMBED_DIM, EMBED_DIM))
    return shapes
