"""A whole clip for one expression (5.2, 5.3 and the order of all)."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from referdino_twin.backbones import bert, swin
from referdino_twin.grounding import TwinGrounding, class_score, ground, refine
from referdino_twin.host import positions_and_mask, track
from referdino_twin.layers import (
    Array,
    Weights,
    conv,
    count,
    feed_forward,
    group_norm,
    layer_norm,
    linear,
    mha,
    sigmoid,
)
from referdino_twin.masks import mask_logits, pixel_decoder

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class TwinClip:
    text_embed: Array
    grounding: list[TwinGrounding]
    src: list[list[Array]]
    x16: Array
    permutations: Array
    memory: Array
    costs: Array
    hs_v: Array
    score: Array
    box: Array
    mask_logits: Array


def run_clip(
    w: Weights, frames: Array, ids: Array, special_ids: Collection[int], bert_heads: int
) -> TwinClip:
    """Run all frames uint8 [T, H, W, 3]."""
    positions, self_mask = positions_and_mask(ids, special_ids)
    text = linear(w, "feat_map", bert(w, ids, positions, self_mask, bert_heads))
    grounding, all_src, x16 = [], [], []
    for frame in frames:
        image = ((frame / 255.0 - MEAN) / STD).transpose(2, 0, 1)
        stages = [stage.transpose(2, 0, 1) for stage in swin(w, image)]
        src = _levels(w, stages)
        result = ground(w, src, text, positions, self_mask)
        maps, start = [], 0
        for x in src[:3]:
            cells = result.memory[start : start + x[0].size]
            maps.append(cells.T.reshape(x.shape))
            start += x[0].size
        x16.append(pixel_decoder(w, *maps, stages[0]))
        grounding.append(result)
        all_src.append(src)
    hs, text_mem = (np.stack([getattr(g, key) for g in grounding]) for key in ("hs", "text_mem"))
    permutations, memory, costs = track(hs, text_mem)
    h = np.stack([g.hs[p] for g, p in zip(grounding, permutations, strict=True)])
    ref = np.stack([g.ref[p] for g, p in zip(grounding, permutations, strict=True)])
    hs_v = temporal(w, h, text_mem[:, 0])
    return TwinClip(
        text_embed=text,
        grounding=grounding,
        src=all_src,
        x16=np.stack(x16),
        permutations=permutations,
        memory=memory,
        costs=costs,
        hs_v=hs_v,
        score=np.stack([sigmoid(class_score(*pair)) for pair in zip(hs_v, text_mem, strict=True)]),
        box=np.stack([refine(w, *pair) for pair in zip(hs_v, ref, strict=True)]),
        mask_logits=np.stack(
            [mask_logits(w, *row) for row in zip(hs_v, ref, text_mem, x16, strict=True)]
        ),
    )


def _levels(w: Weights, stages: list[Array]) -> list[Array]:
    src = [conv(w, f"input_proj.{i}.0", stages[i + 1]) for i in range(3)]
    src.append(conv(w, "input_proj.3.0", stages[3], stride=2, padding=1))
    return [group_norm(w, f"input_proj.{i}.1", x, 32) for i, x in enumerate(src)]


def temporal(w: Weights, h: Array, sentence: Array) -> Array:
    """Map tracked embeddings [T, slots, d] to hs_v, slot by slot."""
    out = np.empty_like(h)
    for slot in range(h.shape[1]):
        x, s = h[:, slot], sentence
        for index in range(count(w, "temporal_decoder.0.layer.")):
            name = f"temporal_decoder.0.layer.{index}"
            x = layer_norm(w, f"{name}.norm", x + mha(w, f"{name}.self_attn", x, x, x)[0])
            name = f"{name}.decoder"
            s = layer_norm(w, f"{name}.norm1", s + mha(w, f"{name}.self_attn", s, s, s)[0])
            s = layer_norm(w, f"{name}.norm2", s + mha(w, f"{name}.multihead_attn", s, x, x)[0])
            s = layer_norm(w, f"{name}.norm3", s + feed_forward(w, name, s))
            x = layer_norm(w, f"temporal_decoder.0.norm.{index}", x + s)
        out[:, slot] = x
    return out
