"""Crowds: single frames full of objects, as training clips."""

from __future__ import annotations

import numpy as np
import pytest

from refsam_bench.synthetic import vocabulary
from refsam_train.data.cells import UNNAMED
from refsam_train.data.crowds import crowd_clip
from refsam_train.data.synthetic_clips import SyntheticClips
from refsam_train.recipe import Data


@pytest.mark.parametrize("index", range(12))
def test_a_crowd_has_many_objects_and_texts_for_different_ones(index: int) -> None:
    clip = crowd_clip(3, index, 3)
    assert clip.frames.shape == (1, 256, 256, 3)
    assert clip.shown is not None
    num_objects = clip.shown.names.shape[1] - 1
    assert num_objects in (9, 16)
    assert (clip.shown.names[0, 1:] != UNNAMED).all()
    seen = np.unique(clip.shown.label_map)
    assert set(seen.tolist()) == set(range(num_objects + 1))
    assert clip.masks.shape == (3, 1, 256, 256)
    assert not (clip.masks.sum(0) > 1).any()
    assert (clip.masks.sum((1, 2, 3)) > 100).all()
    assert set(" ".join(clip.texts).split()) <= set(vocabulary())


def test_a_plain_expression_names_one_object_only() -> None:
    """Shape and colour words of a text fit its object and no other, told from the labels."""
    from refsam_bench.synthetic.palette import COLOURS
    from refsam_bench.synthetic.shapes import OUTLINES

    num_checked = 0
    for index in range(40):
        clip = crowd_clip(5, index, 2)
        assert clip.shown is not None
        for text, mask in zip(clip.texts, clip.masks, strict=True):
            words = text.removeprefix("the ").removeprefix("a ").split()
            if len(words) != 2 or words[0] not in COLOURS or words[1] not in OUTLINES:
                continue
            wanted = (list(OUTLINES).index(words[1]), list(COLOURS).index(words[0]))
            named = (clip.shown.names[0, :, :2] == wanted).all(-1).nonzero()[0].tolist()
            assert np.unique(clip.shown.label_map[mask]).tolist() == named
            num_checked += 1
    assert num_checked >= 5


def test_the_same_key_gives_the_same_crowd_and_another_one_another() -> None:
    first, again, other = crowd_clip(1, 2, 2), crowd_clip(1, 2, 2), crowd_clip(1, 3, 2)
    np.testing.assert_array_equal(first.frames, again.frames)
    assert first.texts == again.texts
    assert (first.frames != other.frames).mean() > 0.5


def test_the_share_of_crowds_is_kept_and_clips_of_several_frames_are_videos() -> None:
    data = Data(kind="synthetic", clips_per_batch=1, slices={"attribute": 1.0}, crowd_share=0.5)
    source = SyntheticClips(data)
    names = [source.clip((0, index), 1).name for index in range(60)]
    assert 18 <= sum(name.startswith("crowd") for name in names) <= 42
    assert all(source.clip((1, index), 2).name.startswith("synthetic") for index in range(6))
