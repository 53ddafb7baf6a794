"""The decoder step for many expressions; what depends on a frame alone is computed once.

The identity of refsam-model 12.4: a 1x1 convolution of [image ; language] is a sum of two linear
maps, and a linear map commutes with the attention average. So the image half is applied per frame
and the language half per word, not both per pixel and expression. `RefSam.step` is the slow twin.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from refsam_export.key_bias import key_bias
from refsam_export.refsam.model.config import EMBED_DIM
from refsam_export.refsam.model.hda import token_attention
from refsam_export.refsam.model.mask_decoder import decode, position_encoding
from refsam_export.refsam.model.refsam import RefSam, zero_absent


class FrameSide(NamedTuple):
    """What depends on frames alone.

    base: [M, 256, h, w], image embedding plus the image half of the dense prompt. levels: [M, 4,
    256, h, w], the normalised maps F_1 to F_3 and F_4, in the order of `language_weights`.
    """

    base: Tensor
    levels: Tensor


class TextSide(NamedTuple):
    """What depends on expressions alone.

    words: [E, N, 256]. word_mask: bool [E, N]. text: [E, N + 1, 256], words and sentence. values:
    [E, 4, N + 1, 256], the language half of the dense prompt per word and level.
    """

    words: Tensor
    word_mask: Tensor
    text: Tensor
    values: Tensor


def frame_side(model: RefSam, embedding: Tensor, features: Tensor) -> FrameSide:
    """Return the frame side of `RefSam.encode_image`'s results."""
    levels = torch.cat([features, embedding[:, None]], dim=1)
    base = embedding
    for level, conv in enumerate(model.dense_convolutions):
        base = base + functional.conv2d(levels[:, level], conv.weight[:, :EMBED_DIM], conv.bias)
    return FrameSide(base, levels)


def text_side(model: RefSam, words: Tensor, word_mask: Tensor, sentence: Tensor) -> TextSide:
    """Return the text side of `RefSam.encode_text`'s results."""
    text = torch.cat([words, sentence[:, None]], dim=1)
    weights = [conv.weight[:, EMBED_DIM:, 0, 0] for conv in model.dense_convolutions]
    values = functional.linear(text, torch.cat(weights)).unflatten(-1, (len(weights), EMBED_DIM))
    return TextSide(words, word_mask, text, values.transpose(1, 2))


def shared_step(
    model: RefSam,
    frames: FrameSide,
    frame_of: Tensor,
    text: TextSide,
    track_token: Tensor,
    has_track: Tensor,
) -> tuple[Tensor, Tensor]:
    """Decode one frame for every expression.

    Args:
        model: the reference.
        frames: of one or more frames.
        frame_of: int64 [E], which of the frames an expression is decoded on.
        text: of the E expressions.
        track_token: [E, 256], ignored where not `has_track`.
        has_track: bool [E].

    Returns:
        low-resolution logits [E, 4h, 4w] and the main mask tokens [E, 256].
    """
    words, track_token = zero_absent(text.words, text.word_mask, track_token, has_track)
    valid = torch.cat([text.word_mask, torch.ones_like(text.word_mask[:, :1])], dim=1)
    bias = key_bias(valid, words.dtype)[:, None]
    attention = token_attention(frames.levels[frame_of], text.text[:, None], bias)
    # [E, h*w, 4 (N + 1)] x [E, 4 (N + 1), 256]: the sum over levels is part of the product.
    language = attention.transpose(1, 2).flatten(2) @ text.values.flatten(1, 2)
    base = frames.base[frame_of]
    src = base + language.transpose(1, 2).unflatten(-1, base.shape[-2:])
    out = decode(
        model.mask_decoder,
        src,
        position_encoding(model.pe.gaussian, base.shape[-1]),
        model.prompts(words, track_token),
        key_bias(torch.cat([has_track[:, None], text.word_mask], dim=1), words.dtype),
    )
    return out.logits[:, 0], out.main_mask_token
