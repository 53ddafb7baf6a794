"""Hierarchical Dense Attention (refsam-model 5.1), from the normalised maps on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from numpy_reference.layers import (
    EMBED_DIM,
    Array,
    Weights,
    conv1x1,
    map_from_pixels,
    pixels_from_map,
    softmax,
)

if TYPE_CHECKING:
    from refsam_export.refsam.model.config import ModelConfig


def attention(features: Array, words: Array, sentence: Array) -> Array:
    """Return how much each pixel of `features` [256,h,w] attends to each token: [h*w,N+1].

    The columns are `words` [N,256] in their order, then `sentence` [256].
    """
    tokens = np.vstack([words, sentence])
    return softmax(pixels_from_map(features) @ tokens.T / np.sqrt(EMBED_DIM))


def dense_attention(
    weights: Weights,
    config: ModelConfig,
    image_embedding: Array,
    hda_features: Array,
    words: Array,
    sentence: Array,
) -> Array:
    """Return the dense prompt [256,h,w]: the sum of Dense Attention over the levels.

    With `hda_levels` 0 it is one of the ablations of 5.1: SAM's `no_mask_embed` everywhere, or,
    with `dense_origin`, the image embedding plus the sentence.
    """
    if config.hda_levels == 0:
        if config.dense_origin:
            return image_embedding + sentence[:, None, None]
        no_mask = weights["no_mask_embed.weight"][0]
        return np.broadcast_to(no_mask[:, None, None], image_embedding.shape)
    levels = [("dense_conv", image_embedding)]
    if config.hda_levels > 1:
        levels += [
            (f"dense_conv2.{level}", features) for level, features in enumerate(hda_features)
        ]
    tokens = np.vstack([words, sentence])
    dense = np.zeros_like(image_embedding)
    for name, features in levels:
        language = attention(features, words, sentence) @ tokens
        both = np.concatenate([features, map_from_pixels(language, features.shape)])
        dense += conv1x1(weights, name, both)
    return dense
