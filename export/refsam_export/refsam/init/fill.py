"""Random weights that behave like trained ones, so that a parity test can see every term.

Plain random weights hide errors: attention is uniform, relative positions and the track token move
nothing, the mask covers everything or nothing. These do not (the tests measure it). Every tensor
follows from (seed, key) alone: filling some keys gives what filling all would have given them, on
any machine and with any number of threads.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import torch
from torch import Tensor

from refsam_export.refsam.init.draw import (
    Draw,
    Rule,
    after_activation,
    centre,
    linear,
    noise,
    seeded,
)
from refsam_export.refsam.init.encoder import ENCODER_RULES
from refsam_export.refsam.model.config import EMBED_DIM, ModelConfig
from refsam_export.refsam.model.refsam import RefSam
from refsam_trt.errors import UsageError

NORMED = EMBED_DIM**0.5
"""Length of a token after LayerNorm. Words have length 1: what is added to them must not drown
them."""

HYPERNETWORK = 2.0
"""Size of the elements of a hypernetwork's output; it sets the scale of the logits."""

COVERAGE = 0.2
"""How far the hypernetworks' bias pulls every logit down, over their size: 0.2 leaves about 28 % of
the pixels in the mask. It works because the up-scaled features end in a GELU, so their mean is
positive in every channel, while the centred hypernetworks ignore that mean."""


def _dense_weight(draw: Draw) -> Tensor:
    """Return the image half strong enough for the position encoding, the language half weaker.

    The features have length 1, so these are the sizes of the outputs; the language is nearly the
    same in all pixels.
    """
    weight = draw.noise()
    weight[:, :EMBED_DIM] *= 0.4
    weight[:, EMBED_DIM:] *= 0.2
    return weight


def _self_attention_weight(draw: Draw) -> Tensor:
    """Return q, k or v of the decoder: layer 0 reads words of length 1, layer 1 normed tokens."""
    return draw.noise() * (1.1 if draw.index == 0 else 1.65 / NORMED)


def _transposed_weight(gain: float) -> Rule:
    return lambda draw: draw.noise() * (gain / draw.shape[0] ** 0.5)


def _transposed_after_activation(gain: float) -> Rule:
    return lambda draw: centre(_transposed_weight(gain)(draw), dim=0)


def _t5_query_weight(draw: Draw) -> Tensor:
    """Return q of T5, which has no 1/sqrt(d_kv) elsewhere; about 0.6 of the uniform entropy."""
    return draw.linear(1.5 / draw.text_head_dim**0.5)


_DECODER = r"mask_decoder\."
_LAYER = _DECODER + r"transformer\.layers\.(?P<index>\d)\."
_ITM_NORM = r"(track_token_mlp\.norm|temporal_aggregation_network\.norm_feat)"
_HYPER = _DECODER + r"output_hypernetworks_mlps\.\d\.layers\."
_TEXT = r"text_encoder\."
_T5 = _TEXT + r"encoder\.block\.\d+\.layer\.\d\."
_ROBERTA = _TEXT + r"encoder\.layer\.\d+\."
_CLIP = _TEXT + r"encoder\.layers\.\d+\."
_EMBEDDINGS = _TEXT + r"embeddings\."

RULES: tuple[tuple[str, Rule], ...] = (
    *ENCODER_RULES,
    (r"pe\.gaussian", noise(1.0)),
    (r"dense_conv(2\.\d)?\.weight", _dense_weight),
    (_DECODER + r"(iou_token|mask_tokens)\.weight", noise(0.1)),
    (_LAYER + r"self_attn\.[qkv]_proj\.weight", _self_attention_weight),
    (_LAYER + r"self_attn\.out_proj\.weight", linear(0.8)),
    (_LAYER + r"cross_attn_image_to_token\.[qk]_proj\.weight", linear(1.7)),
    (_LAYER + r"cross_attn_image_to_token\.out_proj\.weight", linear(0.4)),
    (_DECODER + r".*attn_token_to_image\.[qk]_proj\.weight", linear(1.4)),
    (_DECODER + r".*attn_token_to_image\.out_proj\.weight", linear(0.8)),
    (_LAYER + r"mlp\.lin2\.weight", linear(0.7)),
    (_DECODER + r"output_upscaling\.0\.weight", _transposed_weight(1.0)),
    (_DECODER + r"output_upscaling\.3\.weight", _transposed_after_activation(1.7)),
    (_HYPER + r"[01]\.weight", linear(1.4)),
    (_HYPER + r"2\.weight", lambda draw: centre(draw.linear(HYPERNETWORK), dim=0)),
    (_HYPER + r"2\.bias", noise(0.1 * HYPERNETWORK, mean=-COVERAGE * HYPERNETWORK)),
    (_DECODER + r"iou_prediction_head\.layers\.2\.weight", linear(0.3)),
    (_DECODER + r"iou_prediction_head\.layers\.2\.bias", noise(0.1, mean=0.7)),
    (_ITM_NORM + r"\.weight", noise(0.024, mean=0.12)),
    (_ITM_NORM + r"\.bias", noise(0.012)),
    (r"temporal_aggregation_network\.self_attn\.in_proj_weight", linear(1.0)),
    (r"temporal_aggregation_network\.self_attn\.in_proj_bias", noise(0.1)),
    (r"resizer\.0\.weight", linear(1.4)),
    (r"resizer\.\d\.weight", after_activation(1.4)),
    (_TEXT + r"shared\.weight", noise(1.0)),
    (_T5 + r"SelfAttention\.q\.weight", _t5_query_weight),
    (_T5 + r"SelfAttention\.relative_attention_bias\.weight", noise(1.0)),
    (_T5 + r"SelfAttention\.[kvo]\.weight", linear(1.0)),
    (_T5 + r"DenseReluDense\.wi\.weight", linear(1.0)),
    (_T5 + r"DenseReluDense\.wo\.weight", after_activation(1.0)),
    (_TEXT + r".*layer_norm\d?\.weight", noise(0.2, mean=1.0)),
    (_EMBEDDINGS + r"(word_embeddings|token_embedding)\.weight", noise(1.0)),
    (_EMBEDDINGS + r"position_embeddings?\.weight", noise(0.5)),
    (_EMBEDDINGS + r"token_type_embeddings\.weight", noise(0.3)),
    (_TEXT + r".*LayerNorm\.weight", noise(0.2, mean=1.0)),
    # Scores of size 1.7: q and k of 1.3 each, divided by the root of the heads' width.
    (_ROBERTA + r"attention\.self\.(query|key)\.weight", linear(1.3)),
    (_ROBERTA + r"attention\.(self\.value|output\.dense)\.weight", linear(1.0)),
    (_ROBERTA + r"intermediate\.dense\.weight", linear(1.0)),
    (_ROBERTA + r"output\.dense\.weight", after_activation(1.0)),
    (_CLIP + r"self_attn\.[qk]_proj\.weight", linear(1.3)),
    (_CLIP + r"self_attn\.(v|out)_proj\.weight", linear(0.7)),
    (_CLIP + r"mlp\.fc1\.weight", linear(1.0)),
    (_CLIP + r"mlp\.fc2\.weight", after_activation(1.0)),
    (rf"({_ROBERTA}|{_CLIP}|{_EMBEDDINGS}|{_TEXT}final_).*bias", noise(0.1)),
    (r"(?!text_encoder\.).*\.norm(\d|_final_attn)?\.weight", noise(0.2, mean=1.0)),
    (_DECODER + r"output_upscaling\.1\.weight", noise(0.2, mean=1.0)),
    (r"(?!text_encoder\.).*\.weight", linear(1.0)),
    (r"(?!text_encoder\.).*\.bias", noise(0.1)),
)
"""Patterns of whole keys; the first that fits counts."""


def realistic_init(model: RefSam, seed: int, *, only: Collection[str] | None = None) -> None:
    """Fill the parameters and the buffer `pe.gaussian` of `model` in place.

    Args:
        model: any preset; its text encoder, if there is one, must be T5 with a ReLU feed-forward,
            RoBERTa or CLIP.
        seed: seeds differ in all values; the behaviour is the same.
        only: keys of `model.state_dict()` to fill, the rest stays untouched; None fills all.

    Raises:
        UsageError: `only` names a key that the model lacks, or the text encoder has a tensor that
            none of these has.
    """
    state: dict[str, Tensor] = model.state_dict()
    keys = state.keys() if only is None else only
    if unknown := sorted(set(keys) - state.keys()):
        raise UsageError(
            f"realistic_init: the model has no tensors {unknown}; `only` takes keys of its "
            "state_dict()"
        )
    for key in keys:
        _rule_of(key)  # all of them before anything is filled
    text = model.text_encoder
    head_dim = getattr(text.config, "d_kv", 0) if text is not None else 0
    for key in keys:
        target = state[key]
        with torch.no_grad():
            target.copy_(drawn(key, tuple(target.shape), model.config, seed, head_dim))


def drawn(
    key: str, shape: tuple[int, ...], config: ModelConfig, seed: int, text_head_dim: int
) -> Tensor:
    """Return the float32 values of one tensor of a model's `state_dict()`.

    Args:
        key: of the tensor.
        shape: of the tensor.
        config: of the model.
        seed: as of `realistic_init`.
        text_head_dim: width of a head of T5, 0 with another text encoder or none.
    """
    name, rule, index = _rule_of(key)
    return rule(Draw(config, seed, shape, index, text_head_dim, seeded(seed, name)))


def _rule_of(key: str) -> tuple[str, Rule, int]:
    """Return the name that seeds a tensor, its rule and the index in its key.

    T5's token table is tied and has two keys: both are one name.
    """
    name = key.replace("text_encoder.encoder.embed_tokens.", "text_encoder.shared.")
    for pattern, rule in RULES:
        if match := re.fullmatch(pattern, name):
            return name, rule, int(match.groupdict().get("index") or 0)
    raise UsageError(
        f"realistic_init: no rule for {key}; the text encoder must be a T5 encoder with a ReLU "
        "feed-forward (t5-small to t5-11b), RoBERTa or CLIP"
    )
