"""Measure how much a model behaves like a trained one: the figures that `realistic_init` promises.

Everything runs on the reference, one expression at a time, and attention is computed anew beside
the model's own. Leaves out what the figures should be: the tests say.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from refsam_export.refsam.model.config import EMBED_DIM
from refsam_export.refsam.model.refsam import RefSam
from refsam_export.refsam.model.sam import get_rel_pos

SHARP = 0.7
"""A head counts as sharp below this share of the entropy of uniform attention."""


@dataclass(frozen=True)
class Realism:
    """Figures of one model on some frames and expressions. IoU and pixels are those of low_res.

    An entropy is the mean over queries, over the entropy of uniform attention: 1 is uniform.
    """

    image_entropy: tuple[tuple[float, ...], ...]  # per block and head, first frame
    text_entropy: tuple[float, ...]  # per layer and head, mean over expressions
    decoder_entropy: tuple[float, ...]  # per attention and head, last frame, mean over expressions
    rel_pos_share: tuple[float, ...]  # per block: std over keys of relh + relw, over the scores'
    outlier_ratio: float  # last block: largest channel maximum over the median channel's
    track_moved: tuple[float, ...]  # share of pixels decided otherwise without the track token
    coverage: tuple[float, ...]  # share of pixels in the mask, per expression and frame
    frame_iou: tuple[float, ...]  # consecutive frames, per expression
    expression_iou: tuple[float, ...]  # pairs of expressions, per frame

    @property
    def sharp_heads(self) -> float:
        """Share of the image encoder's heads with an entropy below `SHARP`."""
        heads = list(itertools.chain(*self.image_entropy))
        return sum(entropy < SHARP for entropy in heads) / len(heads)


_Step: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Arguments of one `RefSam.step`."""


@dataclass(frozen=True)
class _Clip:
    """One expression over all frames."""

    logits: Tensor  # [T, 4h, 4w]
    untracked: Tensor  # [T - 1, 4h, 4w], frames 1 on, without the track token they had
    last_step: _Step


@torch.no_grad()
def measure_realism(model: RefSam, frames: Tensor, expressions: Sequence[Sequence[int]]) -> Realism:
    """Run `model` over a short clip and measure it.

    Args:
        model: with a text encoder.
        frames: [M, 3, S, S], normalised; consecutive frames of a moving scene, at least two.
        expressions: token ids, the end token included; at least two.
    """
    image = _ImageProbe()
    blocks = model.image_encoder.blocks
    attentions = [(block.attn, image.attention) for block in blocks]
    with _hooks([*attentions, (blocks[-1], image.last_block)]):
        first = model.encode_image(frames[:1])
    features = [first] + [model.encode_image(frame[None]) for frame in frames[1:]]
    text_entropy, texts = _encode_texts(model, expressions)
    clips = [_run_clip(model, features, *text) for text in texts]
    masks = torch.stack([clip.logits > 0 for clip in clips])
    untracked = torch.stack([clip.untracked > 0 for clip in clips])
    return Realism(
        image_entropy=tuple(image.entropy),
        text_entropy=text_entropy,
        decoder_entropy=_decoder_entropy(model, [clip.last_step for clip in clips]),
        rel_pos_share=tuple(image.rel_pos_share),
        outlier_ratio=image.outlier_ratio,
        track_moved=_floats((masks[:, 1:] != untracked).float().mean((-1, -2))),
        coverage=_floats(masks.float().mean((-1, -2))),
        frame_iou=_floats(_iou(masks[:, 1:], masks[:, :-1])),
        expression_iou=_floats(
            torch.stack([_iou(*pair) for pair in itertools.combinations(masks, 2)])
        ),
    )


def run_clips(model: RefSam, frames: Tensor, expressions: Sequence[Sequence[int]]) -> list[_Clip]:
    features = [model.encode_image(frame[None]) for frame in frames]
    _, texts = _encode_texts(model, expressions)
    return [_run_clip(model, features, *text) for text in texts]


def _run_clip(
    model: RefSam, features: Sequence[tuple[Tensor, Tensor]], words: Tensor, sentence: Tensor
) -> _Clip:
    logits: list[Tensor] = []
    untracked: list[Tensor] = []
    token, has_track = words.new_zeros(1, EMBED_DIM), torch.tensor([False])
    word_mask = torch.ones(words.shape[:2], dtype=torch.bool)
    for embedding, maps in features:
        step: _Step = (embedding, maps, words, word_mask, sentence, token, has_track)
        out = model.step(*step)
        logits.append(out.low_res_logits[0, 0])
        if has_track.all():
            alone = model.step(embedding, maps, words, word_mask, sentence, token, ~has_track)
            untracked.append(alone.low_res_logits[0, 0])
        token, has_track = out.next_track_token, torch.tensor([True])
    return _Clip(torch.stack(logits), torch.stack(untracked), step)


def _floats(x: Tensor) -> tuple[float, ...]:
    return tuple(x.flatten().tolist())


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU of masks [..., H, W], 1 where both are empty."""
    union = (a | b).sum((-1, -2))
    return torch.where(union > 0, (a & b).sum((-1, -2)) / union.clamp_min(1), 1.0)


def _entropy(scores: Tensor) -> Tensor:
    """Return the entropy of softmax(scores [..., queries, keys]), averaged over queries."""
    probabilities = scores.softmax(-1)
    entropy: Tensor = torch.special.entr(probabilities).sum(-1).mean(-1)
    return entropy / math.log(scores.shape[-1])


Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


@contextmanager
def _hooks(hooks: Sequence[tuple[nn.Module, Hook]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _ImageProbe:
    """Hooks that measure each attention of the image encoder, head by head to save memory."""

    def __init__(self) -> None:
        self.entropy: list[tuple[float, ...]] = []
        self.rel_pos_share: list[float] = []
        self.outlier_ratio = 0.0

    def attention(self, module: Any, arguments: tuple[Tensor, ...], _: Tensor) -> None:
        """Measure one attention on its input [windows, H, W, D]."""
        (x,) = arguments
        batch, height, width = x.shape[:3]
        qkv = module.qkv(x).view(batch, height, width, 3, module.num_heads, -1)
        table_h = get_rel_pos(height, height, module.rel_pos_h)
        table_w = get_rel_pos(width, width, module.rel_pos_w)
        entropies, rel_pos_variance, variance = [], 0.0, 0.0
        for head in range(module.num_heads):
            q, k = qkv[..., 0, head, :], qkv[..., 1, head, :]
            rel_h = torch.einsum("bhwc,hkc->bhwk", q, table_h)[..., :, None]
            rel_w = torch.einsum("bhwc,wkc->bhwk", q, table_w)[..., None, :]
            rel_pos = (rel_h + rel_w).flatten(3)
            scores = torch.einsum("bhwc,bijc->bhwij", q * module.scale, k).flatten(3) + rel_pos
            entropies.append(float(_entropy(scores.flatten(1, 2)).mean()))
            rel_pos_variance += float(rel_pos.var(-1).mean())
            variance += float(scores.var(-1).mean())
        self.entropy.append(tuple(entropies))
        self.rel_pos_share.append(math.sqrt(rel_pos_variance / variance))

    def last_block(self, _module: nn.Module, _arguments: tuple[Tensor, ...], out: Tensor) -> None:
        """Compare the channels of the last block's output [1, h, w, D]."""
        largest = out.abs().amax((0, 1, 2))
        self.outlier_ratio = float(largest.max() / largest.median())


@contextmanager
def _recorded(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Record the last output of each module."""
    outputs: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, _arguments: tuple[Tensor, ...], out: Tensor) -> None:
        outputs[module] = out

    with _hooks([(module, record) for module in modules]):
        yield outputs


def _scores(
    projected: Mapping[nn.Module, Tensor], q: nn.Module, k: nn.Module, heads: int
) -> Tensor:
    """Return q k^T per head, [heads, queries, keys], of a batch of one."""
    query, key = (
        projected[linear][0].unflatten(-1, (heads, -1)).transpose(0, 1) for linear in (q, k)
    )
    scores: Tensor = query @ key.mT
    return scores


def _encode_texts(
    model: RefSam, expressions: Sequence[Sequence[int]]
) -> tuple[tuple[float, ...], list[tuple[Tensor, Tensor]]]:
    """Encode each expression alone; return the entropies of T5's heads and the embeddings."""
    attentions = [block.layer[0].SelfAttention for block in model.text_encoder.encoder.block]
    texts, entropies = [], []
    for expression in expressions:
        ids = torch.tensor([list(expression)])
        with _recorded([linear for a in attentions for linear in (a.q, a.k)]) as projected:
            texts.append(model.encode_text(ids, torch.ones_like(ids)))
        bias = attentions[0].compute_bias(ids.shape[1], ids.shape[1])[0]
        scores = [_scores(projected, a.q, a.k, a.n_heads) + bias for a in attentions]
        entropies.append(torch.cat([_entropy(x) for x in scores]))
    return _floats(torch.stack(entropies).mean(0)), texts


def _decoder_entropy(model: RefSam, steps: Sequence[_Step]) -> tuple[float, ...]:
    """Measure the seven attentions of the decoder on steps without absent tokens."""
    transformer = model.mask_decoder.transformer
    attentions = [module for module in transformer.modules() if hasattr(module, "q_proj")]
    entropies = []
    for step in steps:
        with _recorded(
            [linear for a in attentions for linear in (a.q_proj, a.k_proj)]
        ) as projected:
            model.step(*step)
        scores = [_scores(projected, a.q_proj, a.k_proj, a.num_heads) for a in attentions]
        scales = [(a.internal_dim / a.num_heads) ** -0.5 for a in attentions]
        entropies.append(torch.cat([_entropy(x * y) for x, y in zip(scores, scales, strict=True)]))
    return _floats(torch.stack(entropies).mean(0))
