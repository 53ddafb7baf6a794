"""SAM's two-way mask decoder on SAM's own weights, with a key mask (refsam-model section 6).

SAM's modules have no mask input and hide the mask token that RefSAM tracks with; this is the same
computation spelled out, equal to SAM's forward when every token is valid.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from refsam_export.refsam.model.config import EMBED_DIM, NUM_MASK_TOKENS
from refsam_export.refsam.model.sam import MaskDecoder, TwoWayTransformer

MaskSelect = Literal["main", "best_iou", "all"]


class DecoderOutput(NamedTuple):
    """Masks of the mask tokens asked for, their raw scores and the main mask token E_m."""

    logits: Tensor  # [B, K, 4h, 4w], K = 4 when all masks were asked for, else 1
    iou: Tensor  # [B, K]
    main_mask_token: Tensor  # [B, 256]


class ImageProjections(NamedTuple):
    """Projected image side of layer 0, computed elsewhere by the optimised split (12.4)."""

    key: Tensor  # [B, h*w, 128], of src + pe, for tokens -> image
    value: Tensor  # [B, h*w, 128], of src, for tokens -> image
    query: Tensor  # [B, h*w, 128], of src + pe, for image -> tokens


def sam_mask_decoder(mlp_dim: int) -> nn.Module:
    """Return SAM's mask decoder with a token MLP of hidden width `mlp_dim` (SAM: 2048)."""
    transformer = TwoWayTransformer(depth=2, embedding_dim=EMBED_DIM, num_heads=8, mlp_dim=mlp_dim)
    return MaskDecoder(  # type: ignore[no-any-return]
        transformer_dim=EMBED_DIM,
        transformer=transformer,
        num_multimask_outputs=NUM_MASK_TOKENS - 1,
    )


def position_encoding(gaussian: Tensor, size: int) -> Tensor:
    """Return SAM's dense position encoding [1, 256, size, size] from its matrix [2, 128] (6.1)."""
    centres = (torch.arange(size, dtype=gaussian.dtype, device=gaussian.device) + 0.5) / size
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    phase = 2 * math.pi * ((2 * torch.stack([x, y], dim=-1) - 1) @ gaussian)
    return torch.cat([phase.sin(), phase.cos()], dim=-1).permute(2, 0, 1)[None]


def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attend with projected q [B, T, C], k and v [B, S, C]; `bias` [B, S] is added per key."""
    heads = module.num_heads

    def split(x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)

    q, k, v = split(q), split(k), split(v)
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias[:, None, None]
    out = (torch.softmax(scores, dim=-1) @ v).transpose(1, 2)
    return module.out_proj(out.flatten(-2))  # type: ignore[no-any-return]


def _attention(module: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return attend(module, module.q_proj(q), module.k_proj(k), module.v_proj(v), bias)


def run_transformer(
    transformer: Any,
    src: Tensor,
    pe: Tensor,
    tokens: Tensor,
    bias: Tensor,
    layer0: ImageProjections | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the two-way transformer (6.3).

    Args:
        transformer: SAM's `TwoWayTransformer`.
        src: [B, h*w, 256].
        pe: [1, h*w, 256].
        tokens: [B, T, 256], also the query position encoding.
        bias: [B, T], 0 for valid tokens and -1e4 for absent ones.
        layer0: projections of layer 0's image side; None computes them from `src`.

    Returns:
        tokens [B, T, 256] after the final norm and the image side [B, h*w, 256].
    """
    q = tokens
    for index, layer in enumerate(transformer.layers):
        first = index == 0
        query = q if first else q + tokens
        update = _attention(layer.self_attn, query, query, q, bias)
        q = layer.norm1(update if first else q + update)

        to_image, to_token = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        if first and layer0 is not None:
            image = layer0
        else:
            located = src + pe
            image = ImageProjections(
                to_image.k_proj(located), to_image.v_proj(src), to_token.q_proj(located)
            )
        q = layer.norm2(q + attend(to_image, to_image.q_proj(q + tokens), image.key, image.value))
        q = layer.norm3(q + layer.mlp(q))
        key, value = to_token.k_proj(q + tokens), to_token.v_proj(q)
        src = layer.norm4(src + attend(to_token, image.query, key, value, bias))
    final = transformer.final_attn_token_to_image
    q = q + _attention(final, q + tokens, src + pe, src)
    return transformer.norm_final_attn(q), src


def decode(
    decoder: Any,
    src: Tensor,
    pe: Tensor,
    prompts: Tensor,
    prompt_bias: Tensor,
    layer0: ImageProjections | None = None,
    *,
    mask_select: MaskSelect = "main",
) -> DecoderOutput:
    """Decode masks from the image side and the prompt tokens (6.2 to 6.4).

    Args:
        decoder: SAM's `MaskDecoder`.
        src: image embedding plus dense prompt, [B, 256, h, w].
        pe: dense position encoding, [1, 256, h, w].
        prompts: track token first, then words, [B, P, 256]; absent ones zeroed.
        prompt_bias: [B, P], 0 or -1e4.
        layer0: see `run_transformer`.
        mask_select: `main` evaluates hypernetwork 0 alone; `best_iou` returns the mask whose
            score is highest; `all` returns the four (6.6).
    """
    batch, (height, width) = src.shape[0], src.shape[-2:]
    learned = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([learned[None].expand(batch, -1, -1), prompts], dim=1)
    present = torch.zeros_like(prompt_bias[:, :1]).expand(-1, learned.shape[0])
    bias = torch.cat([present, prompt_bias], dim=1)
    q, src = run_transformer(
        decoder.transformer,
        src.flatten(-2).transpose(1, 2),
        pe.flatten(-2).transpose(1, 2),
        tokens,
        bias,
        layer0,
    )
    grid = src.transpose(1, 2).reshape(batch, EMBED_DIM, height, width)
    upscaled = decoder.output_upscaling(grid)
    num_masks = 1 if mask_select == "main" else NUM_MASK_TOKENS
    hyper = torch.stack(
        [decoder.output_hypernetworks_mlps[i](q[:, 1 + i]) for i in range(num_masks)], dim=1
    )
    iou = decoder.iou_prediction_head(q[:, 0])[:, :num_masks]
    if mask_select == "best_iou":
        best = iou.argmax(dim=1, keepdim=True)
        # Not `take_along_dim`, with which torch 2.13 exports a fixed batch.
        iou = iou.gather(1, best)
        hyper = hyper.gather(1, best[..., None].expand(-1, -1, hyper.shape[-1]))
    logits = (hyper @ upscaled.flatten(-2)).unflatten(-1, (4 * height, 4 * width))
    return DecoderOutput(logits, iou, q[:, 1])
