"""Hierarchical Dense Attention (refsam-model section 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from refsam_export.refsam.model.config import EMBED_DIM, TEXT_SCALE


def dense_convolution() -> nn.Conv2d:
    """Return one 512 -> 256 convolution of Dense Attention; image channels first."""
    return nn.Conv2d(2 * EMBED_DIM, EMBED_DIM, 1)


def no_features(embedding: Tensor) -> Tensor:
    """Return [M, 0, 256, h, w]: the `hda_features` of a model without levels but the last."""
    return embedding[:, None][:, :0]


def token_attention(features: Tensor, text: Tensor, bias: Tensor) -> Tensor:
    """Return A = softmax over tokens of F^T T / 16 (5.1).

    Args:
        features: [..., 256, h, w].
        text: [B, K, 256], words and sentence in any order.
        bias: [B, K], 0 or -1e4.

    Returns:
        [B, h*w, K] (leading dims of `features` broadcast with B).
    """
    scores = features.flatten(-2).transpose(-1, -2) @ text.transpose(-1, -2)
    return torch.softmax(scores * TEXT_SCALE + bias[:, None], dim=-1)


def dense_attention(features: Tensor, text: Tensor, bias: Tensor, conv: nn.Module) -> Tensor:
    """Return E_l = conv([F_l ; A_l T]) of one level.

    Args:
        features: F_l, [1, 256, h, w].
        text: [B, K, 256].
        bias: [B, K].
        conv: `dense_conv` or one of `dense_conv2`.

    Returns:
        [B, 256, h, w].
    """
    language = (token_attention(features, text, bias) @ text).transpose(1, 2)
    batch, (height, width) = text.shape[0], features.shape[-2:]
    language = language.reshape(batch, EMBED_DIM, height, width)
    image = features.expand(batch, -1, -1, -1)
    return conv(torch.cat([image, language], dim=1))  # type: ignore[no-any-return]
