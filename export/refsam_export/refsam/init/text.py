"""How `realistic_init` fills text encoders: attention that chooses, positions that matter."""

from __future__ import annotations

from torch import Tensor

from refsam_export.refsam.init.draw import Draw, Rule, after_activation, linear, noise


def _t5_query_weight(draw: Draw) -> Tensor:
    """Return q of T5, which has no 1/sqrt(d_kv) elsewhere; about 0.6 of the uniform entropy."""
    return draw.linear(1.5 / draw.text_head_dim**0.5)


_TEXT = r"text_encoder\."
_T5 = _TEXT + r"encoder\.block\.\d+\.layer\.\d\."
_ROBERTA = _TEXT + r"encoder\.layer\.\d+\."
_CLIP = _TEXT + r"encoder\.layers\.\d+\."
_EMBEDDINGS = _TEXT + r"embeddings\."

TEXT_RULES: tuple[tuple[str, Rule], ...] = (
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
)
"""Patterns of whole keys; the first that fits counts."""
