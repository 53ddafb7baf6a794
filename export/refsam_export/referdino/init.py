"""Random weights of ReferDINO that behave like trained ones, so that a test can see every term.

The modules' own initialisation leaves most of the graph dead: fusion gains of 1e-4, boxes that
never move, samples all in one place, classes that are certain. These weights do not (the tests
measure it). Every tensor follows from (seed, key) alone, on any machine and with any number of
threads.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from refsam_export.referdino.model.config import ModelConfig
from refsam_export.referdino.model.referdino import ReferDino

SCORE, SCORE_SHIFT = 0.1, 3.0
"""Size of the elements of `text_mem`, and how far common directions pull every class score down:
the largest of some ten products is then about as often below 0 as above."""
MASK, MASK_SHIFT = 0.5, 3.0
"""Size of the elements of the mask map, and how far mask logits are pulled down: about a quarter of
the pixels is left in a mask."""
SHARP = 1.4
"""Size of the elements of q and k: scores of size 2."""
IN_TIME = 3.0
"""The same along time, where keys are alike: they are one object in some frames."""


@dataclass(frozen=True)
class Draw:
    """One tensor about to be filled; `index` is the number in its key, 0 without one."""

    config: ModelConfig
    seed: int
    shape: tuple[int, ...]
    index: int
    generator: torch.Generator

    def noise(self) -> Tensor:
        """Return float32 noise of mean 0 and variance 1: a sum of uniforms, the same everywhere."""
        return _noise(self.generator, self.shape)

    def linear(self, gain: float) -> Tensor:
        """Return a weight [out, in, ...] that maps inputs of size 1 to outputs of size `gain`."""
        return self.noise() * (gain / math.sqrt(math.prod(self.shape[1:])))


Rule: TypeAlias = Callable[[Draw], Tensor]


def _noise(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    first, second, third, fourth = (torch.rand(shape, generator=generator) for _ in range(4))
    return (first + second + third + fourth - 2) * math.sqrt(3)


def _seeded(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def noise(std: float, mean: float = 0.0) -> Rule:
    """Return the rule for noise of this mean and standard deviation."""
    return lambda draw: mean + std * draw.noise()


def linear(gain: float) -> Rule:
    """Return the rule of `Draw.linear`."""
    return lambda draw: draw.linear(gain)


def after_activation(gain: float) -> Rule:
    """Like `linear`, for inputs that are never negative: their common mean maps to zero."""

    def rule(draw: Draw) -> Tensor:
        weight = draw.linear(gain).double()
        return (weight - weight.mean(dim=1, keepdim=True)).float()

    return rule


def attention(query: float = SHARP, key: float = SHARP, value: float = 1.0) -> Rule:
    """Return the rule of a weight whose rows are q, then k, then v, with a gain for each."""

    def rule(draw: Draw) -> Tensor:
        gain = torch.tensor([query, key, value]).repeat_interleave(draw.shape[0] // 3)
        return draw.linear(1.0) * gain[:, None]

    return rule


def along(direction: str, amount: float, std: float = 0.05) -> Rule:
    """Return the rule of a bias that moves everything along a direction that others know too."""

    def rule(draw: Draw) -> Tensor:
        return amount * _noise(_seeded(draw.seed, direction), draw.shape) + std * draw.noise()

    return rule


def _shift(total: float, part: float, config: ModelConfig) -> float:
    """Return how large the other bias is, so that their product is `-total`."""
    return -total / (config.width * part)


def _text_norm(draw: Draw) -> Tensor:
    """Text is of size 1 between the layers, and small behind the last, where it scores."""
    size = SCORE if draw.index == draw.config.encoder_layers - 1 else 1.0
    return size * (1 + 0.2 * draw.noise())


def _text_norm_bias(draw: Draw) -> Tensor:
    is_last = draw.index == draw.config.encoder_layers - 1
    return along("class", SCORE, 0.01)(draw) if is_last else 0.1 * draw.noise()


def _object_bias(draw: Draw) -> Tensor:
    return along("class", _shift(SCORE_SHIFT, SCORE, draw.config))(draw)


def _mask_embed_bias(draw: Draw) -> Tensor:
    return along("mask", _shift(MASK_SHIFT, 0.4 * MASK, draw.config))(draw)


def _sentence_attention(draw: Draw) -> Tensor:
    """The first block sees the text as it scores, the others normed features."""
    size = SCORE if draw.index == 0 else 1.0
    return attention(IN_TIME / size, IN_TIME / size, 1.0)(draw)


def _first_box_bias(draw: Draw) -> Tensor:
    """Proposals grow: small ones would hardly be more than a point to the samples."""
    return torch.tensor([0.0, 0.0, 1.5, 1.5]) + 0.1 * draw.noise()


_SWIN = r"backbone\.0\."
_BERT = r"bert\."
_ENCODER = r"transformer\.encoder\."
_LAYERS = r"(transformer\.decoder\.layers|mask_decoder)\.(?P<index>\d+)\."
_TEMPORAL = r"temporal_decoder\.0\."

RULES: tuple[tuple[str, Rule], ...] = (
    (_SWIN + r".*attn\.qkv\.weight", attention()),
    (_SWIN + r".*relative_position_bias_table", noise(0.7)),
    (_SWIN + r".*attn\.proj\.weight", linear(0.7)),
    (_SWIN + r".*mlp\.fc2\.weight", after_activation(0.8)),
    (_BERT + r"embeddings\.word_embeddings\.weight", noise(1.0)),
    (_BERT + r"embeddings\.position_embeddings\.weight", noise(0.5)),
    (_BERT + r"embeddings\.token_type_embeddings\.weight", noise(0.3)),
    (_BERT + r".*attention\.self\.(query|key)\.weight", linear(SHARP)),
    (_BERT + r".*\d\.output\.dense\.weight", after_activation(1.0)),
    (_BERT + r".*LayerNorm\.weight", noise(0.2, mean=1.0)),
    (r"transformer\.level_embed", noise(0.5)),
    (r"transformer\.tgt_embed\.weight", noise(1.0)),
    (_ENCODER + r".*gamma_[vl]", noise(0.1, mean=0.4)),
    (_ENCODER + r"fusion_layers.*attn\.[vl]_proj\.weight", linear(SHARP)),
    (_ENCODER + r"text_layers\.(?P<index>\d+)\.norm2\.weight", _text_norm),
    (_ENCODER + r"text_layers\.(?P<index>\d+)\.norm2\.bias", _text_norm_bias),
    (r"transformer\.(enc_output_norm|decoder\.norm)\.bias", _object_bias),
    (r"transformer\.decoder\.layers\.\d+\.norm3\.bias", _object_bias),
    (_TEMPORAL + r"norm\.\d+\.bias", _object_bias),
    (r"mask_decoder\.\d+\.norm3\.bias", _mask_embed_bias),
    (r"pixel_decoder\.out_lay\.weight", after_activation(MASK)),
    (r"pixel_decoder\.out_lay\.bias", along("mask", 0.4 * MASK, 0.02)),
    (_LAYERS + r"ca_text\.in_proj_weight", attention(SHARP, SHARP / SCORE, 1 / SCORE)),
    (r"mask_decoder\.\d+\.cross_attn\.value_proj\.weight", linear(1 / MASK)),
    (r"mask_decoder\.\d+\.cross_attn\.sampling_offsets\.bias", noise(6.0)),
    (_TEMPORAL + r"layer\.(?P<index>\d+)\.decoder\.self_attn\.in_proj_weight", _sentence_attention),
    (_TEMPORAL + r".*in_proj_weight", attention(IN_TIME, IN_TIME)),
    (_TEMPORAL + r".*out_proj\.weight", linear(0.5)),
    # What is the same in all slots must not drown what tells them apart.
    (_TEMPORAL + r".*decoder\.norm3\.weight", noise(0.1, mean=0.6)),
    (r".*in_proj_weight", attention()),
    (r".*sampling_offsets\.weight", linear(0.7)),
    (r".*sampling_offsets\.bias", noise(1.5)),
    (r".*cross_attn\.output_proj\.weight", linear(1.5)),
    (r".*bbox_embed(\.0)?\.layers\.2\.weight", after_activation(0.7)),
    (r"transformer\.enc_out_bbox_embed\.layers\.2\.bias", _first_box_bias),
    (r".*linear1\.weight", linear(SHARP)),
    (r".*linear2\.weight", after_activation(1.0)),
    (r".*(norm\w*|gn\d|input_proj\.\d\.1|norm\.\d+)\.weight", noise(0.2, mean=1.0)),
    (r".*\.weight", linear(1.0)),
    (r".*bias", noise(0.1)),
)
"""Patterns of whole keys; the first that fits counts."""


def realistic_init(model: ReferDino, seed: int) -> None:
    """Fill all parameters of a model in place; seeds differ in all values, not in behaviour."""
    for key, target in model.state_dict().items():
        with torch.no_grad():
            target.copy_(drawn(key, tuple(target.shape), model.config, seed))


def drawn(key: str, shape: tuple[int, ...], config: ModelConfig, seed: int) -> Tensor:
    """Return the float32 values of one tensor of a model's `state_dict()`."""
    for pattern, rule in RULES:
        if match := re.fullmatch(pattern, key):
            index = int(match.groupdict().get("index") or 0)
            return rule(Draw(config, seed, shape, index, _seeded(seed, key)))
    raise AssertionError(f"no rule for {key}")  # pragma: no cover: the last rules fit everything
