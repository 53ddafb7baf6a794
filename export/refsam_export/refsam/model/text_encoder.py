"""From token ids to the text embedding: pooling and Cross-Modal MLP (refsam-model section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from refsam_export.refsam.model.config import EMBED_DIM


def cross_modal_mlp(text_width: int, hidden: Sequence[int] | None = None) -> nn.Sequential:
    """Return the MLP d -> `hidden` -> 256 shared by words and sentence, ReLU in between (3.3).

    `hidden` None is the paper's one hidden layer of width d/2.
    """
    widths = [text_width, *((text_width // 2,) if hidden is None else hidden), EMBED_DIM]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Average x [B, N, d] over the tokens where mask [B, N] is true -> [B, d]."""
    kept = torch.where(mask[..., None], x, torch.zeros((), dtype=x.dtype, device=x.device))
    return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True).to(x.dtype)


def embed_text(
    x: Tensor, mask: Tensor, resizer: nn.Module, l2norm: nn.Module | None
) -> tuple[Tensor, Tensor]:
    """Map text-encoder outputs to `words` and `sentence`.

    Args:
        x: [B, N, d], last hidden state.
        mask: bool [B, N], true for tokens, the end token included.
        resizer: the Cross-Modal MLP.
        l2norm: brings words and sentence to unit length (`L2Norm`); None leaves them as they are.

    Returns:
        words [B, N, 256], rows of pads zero, and sentence [B, 256]; the sentence is pooled before
        the MLP (3.3).
    """
    words, sentence = resizer(x), resizer(masked_mean(x, mask))
    if l2norm is not None:
        words, sentence = l2norm(words, -1), l2norm(sentence, -1)
    zero = torch.zeros((), dtype=words.dtype, device=words.device)
    return torch.where(mask[..., None], words, zero), sentence
