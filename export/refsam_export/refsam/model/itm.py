"""Implicit Tracking Module: main mask token -> next track token (refsam-model section 7)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from refsam_export.refsam.model.config import EMBED_DIM

NUM_HEADS = 8
ITM_NAMES: dict[Literal["ffn", "qim"], str] = {
    "ffn": "track_token_mlp",
    "qim": "temporal_aggregation_network",
}
"""Attribute of the model, and so prefix of the keys, of each form."""


class TrackTokenMlp(nn.Module):
    """`LayerNorm(E_m + W2 relu(W1 E_m))`, paper III-G."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(EMBED_DIM, hidden)
        self.linear2 = nn.Linear(hidden, EMBED_DIM)
        self.norm = nn.LayerNorm(EMBED_DIM)

    def forward(self, main_mask_token: Tensor) -> Tensor:
        """Map [B, 256] to [B, 256]."""
        update = self.linear2(torch.relu(self.linear1(main_mask_token)))
        return self.norm(main_mask_token + update)  # type: ignore[no-any-return]


class TemporalAggregationNetwork(nn.Module):
    """The `qim` of the released scripts (7.2): attention of a single token, then two MLPs."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(EMBED_DIM, NUM_HEADS)
        self.linear1 = nn.Linear(EMBED_DIM, hidden)
        self.linear2 = nn.Linear(hidden, EMBED_DIM)
        self.linear_feat1 = nn.Linear(EMBED_DIM, hidden)
        self.linear_feat2 = nn.Linear(hidden, EMBED_DIM)
        self.norm1, self.norm2 = nn.LayerNorm(EMBED_DIM), nn.LayerNorm(EMBED_DIM)
        self.norm_feat = nn.LayerNorm(EMBED_DIM)

    def forward(self, main_mask_token: Tensor, track_token: Tensor) -> Tensor:
        """Map E_m [B, 256] and the previous track token [B, 256], zero if absent, to [B, 256]."""
        u = main_mask_token + track_token
        a = self.norm1(u + self._attended(u))
        b = self.norm2(a + self.linear2(torch.relu(self.linear1(a))))
        update = self.linear_feat2(torch.relu(self.linear_feat1(b)))
        return self.norm_feat(u + update)  # type: ignore[no-any-return]

    def _attended(self, u: Tensor) -> Tensor:
        """Return the self-attention of one token: all weight is on it, so only v counts (7.2)."""
        weight, bias = self.self_attn.in_proj_weight, self.self_attn.in_proj_bias
        value = functional.linear(u, weight[2 * EMBED_DIM :], bias[2 * EMBED_DIM :])
        return self.self_attn.out_proj(value)  # type: ignore[no-any-return]
