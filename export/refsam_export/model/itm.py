"""Implicit Tracking Module: main mask token -> next track token (refsam-model section 7.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from refsam_export.model.config import EMBED_DIM


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
