"""RefSAM in plain float64 numpy, written from the specification alone: what PyTorch is tested with.

One frame, one expression, no padding, no rewrites. It shares no code with the PyTorch model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from numpy_reference import decoder, hda, itm, random_weights, text, vit
from numpy_reference.layers import Array, Weights

if TYPE_CHECKING:
    from refsam_export.model.config import ModelConfig

__all__ = [
    "Array",
    "Weights",
    "decoder",
    "hda",
    "itm",
    "random_weights",
    "run_frame",
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
        `low_res_logits` [1,4h,4w] and `iou` [1] of the main mask, `next_track_token` [256].
    """
    image_embedding, hda_features = vit.encode_image(weights, config, image)
    dense = hda.dense_attention(weights, config, image_embedding, hda_features, words, sentence)
    logits, iou, main_mask_token = decoder.decode(
        weights, config, image_embedding, dense, words, track_token
    )
    return logits[:1], iou[:1], itm.next_track_token(weights, main_mask_token)
