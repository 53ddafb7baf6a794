"""Small ReferDINOs of realistic random weights, and what reference and twin make of short clips."""

import dataclasses
import functools

import numpy as np
import torch
from referdino_twin import TwinClip, TwinGrounding, run_clip

from refsam_export.parity.inputs import moving_frames
from refsam_export.referdino.init import realistic_init
from refsam_export.referdino.model.config import ModelConfig, preset
from refsam_export.referdino.model.referdino import ReferDino
from refsam_export.referdino.reference import Clip, Reference, normalised

SPECIAL_IDS = (2, 3, 5, 6)
SHORT = (2, 8, 14, 13, 5, 3)
TWO_BLOCKS = (2, 21, 13, 10, 22, 6, 9, 24, 7, 15, 13, 11, 9, 12, 5, 3)
MIDDLE = (2, 9, 25, 26, 28, 29, 30, 31, 5, 3)
SMALL_HW = (70, 90)
"""No side is a multiple of 8, and every map but the first is smaller than two windows."""
WIDE_HW = (32, 416)
"""So wide that the outer cells of stride 8 are no valid proposals."""

CONFIGS: dict[str, ModelConfig] = {
    "tiny": preset("tiny"),
    # 113 -> 57 -> 29 -> 15: every half is rounded up.
    "odd": dataclasses.replace(preset("tiny"), num_queries=113),
    "narrow": dataclasses.replace(
        preset("tiny"),
        width=128,
        window=5,
        swin_depths=(1, 2, 3, 1),
        encoder_layers=1,
        decoder_layers=2,
        num_queries=45,
        mask_layers=1,
        temporal_layers=3,
        num_points=3,
        mask_points=5,
    ),
}


# Of this seed, invalid proposals are chosen in a wide frame and live through all prunings.
CONFIGS["wide"], _SEEDS = CONFIGS["odd"], {"wide": 2}


@functools.cache
def model(name: str, seed: int | None = None) -> ReferDino:
    """Return a model in float64 that nobody may change; None takes the usual seed of that name."""
    seed = _SEEDS.get(name, 0) if seed is None else seed
    made = ReferDino(CONFIGS[name])
    realistic_init(made, seed)
    return made.double().eval().requires_grad_(False)


def weights(of: ReferDino) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in of.state_dict().items()}


@functools.cache
def frames(num_frames: int, hw: tuple[int, int] = SMALL_HW) -> np.ndarray:
    return moving_frames(num_frames, seed=3, hw=hw)


def reference_clip(
    of: ReferDino, ids: tuple[int, ...], num_frames: int, hw: tuple[int, int] = SMALL_HW
) -> Clip:
    images = normalised(frames(num_frames, hw), torch.float64)
    return Reference(of, SPECIAL_IDS).run(images, np.array(ids))


def twin_clip_of(
    of: ReferDino, ids: tuple[int, ...], num_frames: int, hw: tuple[int, int] = SMALL_HW
) -> TwinClip:
    heads = of.config.bert_heads
    return run_clip(weights(of), frames(num_frames, hw), np.array(ids), SPECIAL_IDS, heads)


@functools.cache
def twin_clip(
    name: str, ids: tuple[int, ...], num_frames: int, hw: tuple[int, int] = SMALL_HW
) -> TwinClip:
    return twin_clip_of(model(name), ids, num_frames, hw)


def differences(clip: Clip, twin: TwinClip) -> dict[str, float]:
    """Return how far each result is from the twin's, relative to its largest value.

    Ids and permutations count 0 where they are equal, else 1; proposals of equal score may stand in
    any order.
    """
    pairs = {
        "text_embed": (clip.text_embed[0], twin.text_embed),
        **{
            name: (
                torch.cat([getattr(frame, name) for frame in clip.grounding]),
                np.stack([getattr(frame, name) for frame in twin.grounding]),
            )
            for name in ("text_mem", "hs", "ref")
        },
        "x16": (torch.cat([frame.x16 for frame in clip.grounding]), twin.x16),
        "memory": (clip.memories[-1], twin.memory),
        "hs_v": (clip.enhanced.hs_v, twin.hs_v),
        "score": (clip.enhanced.score, twin.score),
        "box": (clip.enhanced.box, twin.box),
        "mask_logits": (clip.mask_logits, twin.mask_logits),
    }
    result = {
        name: relative(np.asarray(value), expected) for name, (value, expected) in pairs.items()
    }
    result["selected_ids"] = float(
        not all(
            _same_ids(a.selected_ids[0].numpy(), b)
            for a, b in zip(clip.grounding, twin.grounding, strict=True)
        )
    )
    result["permutations"] = float(not np.array_equal(clip.permutations, twin.permutations))
    return result


def _same_ids(selected: np.ndarray, twin: TwinGrounding) -> bool:
    proposals, *kept = twin.ids
    count = len(proposals)
    return (
        len(set(selected[:count])) == count
        and np.array_equal(twin.proposal_score[selected[:count]], twin.proposal_score[proposals])
        and np.array_equal(selected[count:], np.concatenate(kept))
    )


def relative(value: np.ndarray, expected: np.ndarray) -> float:
    assert value.shape == expected.shape
    return float(np.abs(value - expected).max() / np.abs(expected).max())
