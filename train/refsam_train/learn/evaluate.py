"""How good the weights are on synthetic videos that are kept for tuning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from refsam_bench.synthetic import SLICES, Slice, generate
from refsam_bench.synthetic.video import NUM_FRAMES, TUNE_SEED
from refsam_export.refsam.model.refsam import RefSam
from refsam_train.data.clips import Clip, Collator
from refsam_train.learn.forward import encode_frames, encode_texts, follow, image_logits
from refsam_train.learn.losses import mask_iou
from refsam_train.recipe import Data

# Bounds the memory; the scores do not depend on it.
_CLIPS_AT_ONCE = 8
_CLIPS_PER_SLICE = 24


class TuningSet:
    """Fixed clips of the tuning seed: first frames, or half the frames of videos for clips.

    Args:
        data: of the recipe: slices and length of the clips.
        collator: of the model.
        clips_per_slice: how many videos of each slice.
    """

    def __init__(
        self, data: Data, collator: Collator, clips_per_slice: int = _CLIPS_PER_SLICE
    ) -> None:
        self._collator = collator
        num_frames = 1 if data.num_frames == 1 else NUM_FRAMES // 2
        frames = [int(x) for x in np.linspace(0, NUM_FRAMES - 1, num_frames).round()]
        self._keys = [
            (name, index, frames)
            for name in SLICES
            if name in data.slices
            for index in range(clips_per_slice)
        ]

    @torch.no_grad()
    def scores(self, model: RefSam, device: torch.device) -> dict[str, float]:
        """Return the mean IoU per slice, over frames and expressions, and their mean as `all`."""
        by_slice: dict[str, list[float]] = {}
        for start in range(0, len(self._keys), _CLIPS_AT_ONCE):
            clips = [_clip(*key) for key in self._keys[start : start + _CLIPS_AT_ONCE]]
            for name, score in self._clip_scores(model, clips, device):
                by_slice.setdefault(name, []).append(score)
        scores = {name: float(np.mean(values)) for name, values in by_slice.items()}
        return {**scores, "all": float(np.mean(list(scores.values())))}

    def _clip_scores(
        self, model: RefSam, clips: Sequence[Clip], device: torch.device
    ) -> list[tuple[str, float]]:
        batch = self._collator(clips).to(device)
        logits, _ = follow(model, batch, encode_frames(model, batch), encode_texts(model, batch))
        (group,) = batch.groups
        logits = image_logits(logits, model.config.image_size, group)
        scores = mask_iou(logits, group.masks).mean(0).tolist()
        return [(clips[i].name, x) for i, x in zip(batch.clip_of.tolist(), scores, strict=True)]


def _clip(name: Slice, index: int, frames: list[int]) -> Clip:
    video = generate(TUNE_SEED, index, slice=name, frame_indices=frames)
    expressions = video.expressions[:2]
    masks = np.stack([video.mask(expression.object_id) for expression in expressions])
    return Clip(video.frames, masks, tuple(e.text for e in expressions), name)
