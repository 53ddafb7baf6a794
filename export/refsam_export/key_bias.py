"""What attention adds to the scores of keys that are not there: in the text encoders and RefSAM."""

from __future__ import annotations

import torch
from torch import Tensor

MASKED = -1e4
"""Of an absent key: finite, safe in fp16 (refsam-model 12.2)."""


def key_bias(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where `valid` (bool) and `MASKED` elsewhere."""
    zero = torch.zeros((), dtype=dtype, device=valid.device)
    return torch.where(valid, zero, torch.full_like(zero, MASKED))
