"""Temporal blocks: the slots of all frames attend along time, with no encoding of it (5.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from refsam_export.referdino.model.attention import MultiHeadAttention
from refsam_export.referdino.model.config import ModelConfig


class _SentenceDecoder(nn.Module):
    """A decoder layer whose queries are the sentence features and whose memory are the objects."""

    def __init__(self, width: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(width, num_heads)
        self.norm1 = nn.LayerNorm(width)
        self.multihead_attn = MultiHeadAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, s: Tensor, h: Tensor) -> Tensor:
        s = self.norm1(s + self.self_attn(s, s, s)[0])
        s = self.norm2(s + self.multihead_attn(s, h, h)[0])
        out: Tensor = self.norm3(s + self.linear2(torch.relu(self.linear1(s))))
        return out


class TemporalBlock(nn.Module):
    """One block on objects h and sentence features s, both [slots, T, d]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(config.width, config.num_heads)
        self.norm = nn.LayerNorm(config.width)
        self.decoder = _SentenceDecoder(config.width, config.num_heads, config.temporal_ffn)

    def forward(self, h: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return h, to which the new s is still to be added, and the new s."""
        h = self.norm(h + self.self_attn(h, h, h)[0])
        return h, self.decoder(s, h)


class TemporalDecoder(nn.Module):
    """The blocks, each followed by a norm of the sum."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count = range(config.temporal_layers)
        self.layer = nn.ModuleList(TemporalBlock(config) for _ in count)
        self.norm = nn.ModuleList(nn.LayerNorm(config.width) for _ in count)

    def forward(self, h: Tensor, sentence: Tensor) -> Tensor:
        """Let each slot look at itself in all frames.

        Args:
            h: [T, slots, d], tracked embeddings.
            sentence: [T, d], the features of `[CLS]`, the same for all slots.

        Returns:
            [T, slots, d].
        """
        h = h.transpose(0, 1)
        s = sentence.expand(h.shape[0], -1, -1)
        for layer, norm in zip(self.layer, self.norm, strict=True):
            h, s = layer(h, s)
            h = norm(h + s)
        return h.transpose(0, 1)
