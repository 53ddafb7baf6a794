"""Tuning videos: never those of evaluation, each expression with its own mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from refsam_bench.synthetic import SyntheticVideo, split_of
from refsam_train.data.clips import Clip
from refsam_train.learn import evaluate
from refsam_train.learn.evaluate import TuningSet
from refsam_train.recipe import Data


def data(num_frames: int) -> Data:
    slices = {"track": 1.0, "attribute": 2.0}
    return Data(kind="synthetic", clips_per_batch=1, num_frames=num_frames, slices=slices)


@pytest.mark.parametrize(("num_frames", "frames"), [(1, [0]), (4, [0, 2, 4, 6, 9, 11, 13, 15])])
def test_clips_are_of_the_tuning_seed_and_scored_by_slice(
    num_frames: int, frames: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[SyntheticVideo] = []
    generate, clips = evaluate.generate, []

    def noting(*arguments: Any, **options: Any) -> SyntheticVideo:
        made.append(generate(*arguments, **options, size_hw=(64, 64)))
        return made[-1]

    def scored(self: Any, model: Any, given: list[Clip], device: Any) -> list[tuple[str, float]]:
        clips.extend(given)
        return [(clip.name, float(clip.name == "track")) for clip in given]

    monkeypatch.setattr(evaluate, "generate", noting)
    monkeypatch.setattr(TuningSet, "_clip_scores", scored)
    model: Any = None
    tuning = TuningSet(data(num_frames), model, clips_per_slice=2)
    assert tuning.scores(model, torch.device("cpu")) == {"attribute": 0.0, "track": 1.0, "all": 0.5}
    assert [(v.slice, v.index) for v in made] == [
        ("attribute", 0),
        ("attribute", 1),
        ("track", 0),
        ("track", 1),
    ]
    for video, clip in zip(made, clips, strict=True):
        assert split_of(video.seed) == "tune"
        assert list(video.frame_indices) == frames
        for text, mask in zip(clip.texts, clip.masks, strict=True):
            (number,) = {e.object_id for e in video.expressions if e.text == text}
            np.testing.assert_array_equal(mask, video.mask(number))
