"""RefSAM in plain float64 numpy, written from the specification alone: what PyTorch is tested with.

One frame, one expression, no padding, no rewrites. It shares no code with the PyTorch model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from numpy_reference import decoder, hda, itm, random_weights, text, vit
from numpy_reference.layers import Array, Weights

if TYPE_CHECKING:
    from refsam_export.refsam.model.config import ModelConfig

__all__ = [
    "Array",
    "Weights",
    "decoder",
    "hda",
    "itm",
    "random_weights",
    "run_frame",
    "run_step",
    "text",
    "vit",
]


def run_frame(
    weights: Weights,
    config: ModelConfig,
    image: Array,
    words: Array,
    sentence: Array,
    track_token: Array | None,
) -> tuple[Array, Array, Array]:
    """Run everything after the text encoder on one normalised frame `image` [3,S,S].

    Returns:
        `low_res_logits` [1,4h,4w] and `iou` [1] of the selected mask, `next_track_token` [256].
    """
    encoded = vit.encode_image(weights, config, image)
    return run_step(weights, config, *encoded, words, sentence, track_token)


def run_step(
    weights: Weights,
    config: ModelConfig,
    image_embedding: Array,
    hda_features: Array,
    words: Array,
    sentence: Array,
    track_token: Array | None,
) -> tuple[Array, Array, Array]:
    """Run everything after the image encoder; returns what `run_frame` does."""
    dense = hda.dense_attention(weights, config, image_embedding, hda_features, words, sentence)
    prompts = words if config.word_tokens else np.zeros_like(words)
    logits, iou, main_mask_token = decoder.decode(
        weights, config, image_embedding, dense, prompts, track_token
    )
    chosen = int(np.argmax(iou)) if config.mask_select == "best_iou" else 0
    next_track_token = itm.next_track_token(weights, config, main_mask_token, track_token)
    return logits[chosen : chosen + 1], iou[chosen : chosen + 1], next_track_token
