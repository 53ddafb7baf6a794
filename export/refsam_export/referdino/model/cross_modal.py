"""The encoder of the grounding transformer: image and text look at each other (4.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from refsam_export.key_bias import key_bias
from refsam_export.referdino.model.attention import (
    DeformableAttention,
    MultiHeadAttention,
    join_heads,
    split_heads,
)
from refsam_export.referdino.model.boxes import LevelSizes
from refsam_export.referdino.model.config import NUM_LEVELS, ModelConfig

SCORE_BOUND = 50000.0
"""Scores of the fusion stay within this."""
ABSENT = -1e5
"""Score of a padded token in the fusion: below the bound, and finite."""


class _BiAttention(nn.Module):
    """One product of scores, read both ways: cells look at tokens, tokens look at cells."""

    def __init__(self, width: int, inner: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (inner // num_heads) ** -0.5
        for name in ("v_proj", "l_proj", "values_v_proj", "values_l_proj"):
            self.add_module(name, nn.Linear(width, inner))
        self.out_v_proj = nn.Linear(inner, width)
        self.out_l_proj = nn.Linear(inner, width)

    def forward(self, image: Tensor, text: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the image [B, S, d] and the text [B, N, d] take from each other."""
        q, k, image_values, text_values = (
            split_heads(self.get_submodule(name)(x), self.num_heads)
            for name, x in (
                ("v_proj", image),
                ("l_proj", text),
                ("values_v_proj", image),
                ("values_l_proj", text),
            )
        )
        scores = (q * self.scale) @ k.mT  # [B, heads, S, N]
        scores = _bounded(scores - scores.amax((-3, -2, -1), keepdim=True))
        present = token_mask[:, None, None]
        of_image = torch.where(present, scores, torch.full_like(scores, ABSENT)).softmax(dim=-1)
        of_text = _bounded(scores - scores.amax(-2, keepdim=True)).softmax(dim=-2).mT
        return (
            self.out_v_proj(join_heads(of_image @ text_values)),
            self.out_l_proj(join_heads(of_text @ image_values)),
        )


def _bounded(scores: Tensor) -> Tensor:
    return scores.clamp(-SCORE_BOUND, SCORE_BOUND)


class FusionLayer(nn.Module):
    """Bi-directional attention; what is added to are the normalised tensors."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.layer_norm_v = nn.LayerNorm(width)
        self.layer_norm_l = nn.LayerNorm(width)
        self.attn = _BiAttention(width, config.ffn_dim // 2, config.num_heads // 2)
        self.gamma_v = nn.Parameter(torch.full((width,), 1e-4))
        self.gamma_l = nn.Parameter(torch.full((width,), 1e-4))

    def forward(self, image: Tensor, text: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Map image [B or 1, S, d] and text [B or 1, N, d] to [B, S, d] and [B, N, d]."""
        image, text = self.layer_norm_v(image), self.layer_norm_l(text)
        image_part, text_part = self.attn(image, text, token_mask)
        return image + self.gamma_v * image_part, text + self.gamma_l * text_part


class TextLayer(nn.Module):
    """Self-attention inside the blocks of an expression, and feed-forward; post-norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.self_attn = MultiHeadAttention(width, config.num_heads // 2)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, config.ffn_dim // 2)
        self.linear2 = nn.Linear(config.ffn_dim // 2, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, text: Tensor, position: Tensor, bias: Tensor) -> Tensor:
        """Map [B, N, d] to the same; bias is added to scores, [B, 1, N, N]."""
        query = text + position
        text = self.norm1(text + self.self_attn(query, query, text, bias)[0])
        out: Tensor = self.norm2(text + self.linear2(torch.relu(self.linear1(text))))
        return out


class ImageLayer(nn.Module):
    """Deformable self-attention over all levels, and feed-forward; post-norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.self_attn = DeformableAttention(width, config.num_heads, NUM_LEVELS, config.num_points)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, config.ffn_dim)
        self.linear2 = nn.Linear(config.ffn_dim, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(
        self, image: Tensor, position: Tensor, centres: Tensor, sizes: LevelSizes
    ) -> Tensor:
        """Map [B, S, d] to the same; position is [S, d], centres [1, S, 2]."""
        attended = self.self_attn(image + position, centres, image, sizes)
        image = self.norm1(image + attended)
        out: Tensor = self.norm2(image + self.linear2(torch.relu(self.linear1(image))))
        return out


class Encoder(nn.Module):
    """Layers of fusion, text and image, in this order."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count = range(config.encoder_layers)
        self.fusion_layers = nn.ModuleList(FusionLayer(config) for _ in count)
        self.text_layers = nn.ModuleList(TextLayer(config) for _ in count)
        self.layers = nn.ModuleList(ImageLayer(config) for _ in count)

    def forward(
        self,
        image: Tensor,
        image_position: Tensor,
        centres: Tensor,
        sizes: LevelSizes,
        text: Tensor,
        text_position: Tensor,
        text_self_mask: Tensor,
        token_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run all layers.

        Args:
            image: [B or 1, S, d], the cells of all levels.
            image_position: [S, d].
            centres: [1, S, 2] of the cells.
            sizes: of the levels.
            text: [B or 1, N, d].
            text_position: [B or 1, N, d].
            text_self_mask: bool [B or 1, N, N].
            token_mask: bool [B or 1, N], false for padding.

        Returns:
            Memory [B, S, d], text [B, N, d].
        """
        bias = key_bias(text_self_mask, text.dtype)[:, None]
        layers = zip(self.fusion_layers, self.text_layers, self.layers, strict=True)
        for fusion_layer, text_layer, image_layer in layers:
            image, text = fusion_layer(image, text, token_mask)
            text = text_layer(text, text_position, bias)
            image = image_layer(image, image_position, centres, sizes)
        return image, text
