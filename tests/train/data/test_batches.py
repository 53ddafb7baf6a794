"""Data: a pure function of recipe, step and process; never a seed that tunes or evaluates."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from tiny_training import batch_of, fresh_model, read_tiny, source_of

from refsam_bench.synthetic import TUNE_SEED, SyntheticVideo, generate
from refsam_bench.synthetic.language.meaning import fits
from refsam_export.refsam.model.config import preset
from refsam_train.data import synthetic_clips
from refsam_train.data.batches import Place, StepBatches, batches_from
from refsam_train.data.cells import cell_labels
from refsam_train.data.clips import Batch, Clip, Collator
from refsam_train.recipe import Data
from refsam_trt.errors import DatasetError, UsageError


def test_a_step_has_the_same_data_whenever_it_is_asked_for(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path)
    loaded = fresh_model(recipe)
    collator = Collator(loaded.model.config, loaded.tokenizer)
    batches = StepBatches(recipe, source_of(recipe), collator, Place())
    in_order = [step[0] for step in batches_from(batches, 0, 0)]
    resumed = [step[0] for step in batches_from(batches, 2, 0)]
    worker_made = [step[0] for step in batches_from(batches, 2, 1)]
    assert len(in_order) == recipe.steps
    for found in (resumed, worker_made):
        for expected, batch in zip(in_order[2:], found, strict=True):
            assert _equal(expected, batch)
    assert not _equal(in_order[2], in_order[3])


def test_single_frame_steps_hold_as_many_images(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path, steps="12", single_frame_share="0.5")
    loaded = fresh_model(recipe)
    shapes = {batch_of(recipe, loaded, step).images.shape[:2] for step in range(12)}
    assert shapes == {(2, 2), (1, 4)}


def test_processes_and_micro_batches_see_different_clips(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path, single_frame_share="0.0")
    loaded = fresh_model(recipe)
    alone = batch_of(read_tiny(tmp_path, clips_per_batch="4", single_frame_share="0.0"), loaded)
    first = batch_of(recipe, loaded, 0, Place(0, 2))
    second = batch_of(recipe, loaded, 0, Place(1, 2))
    assert torch.equal(torch.cat([first.images, second.images], dim=1), alone.images)


def test_batch_matches_its_clips(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path)
    loaded = fresh_model(recipe)
    source = source_of(recipe)
    clips = [source.clip((1, index), 2) for index in range(3)]
    batch = Collator(loaded.model.config, loaded.tokenizer)(clips)
    (group,) = batch.groups
    row = 0
    for index, clip in enumerate(clips):
        for text, mask in zip(clip.texts, clip.masks, strict=True):
            assert batch.clip_of[row] == index
            assert np.array_equal(group.masks[:, row].numpy(), mask)
            ids = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
            assert ids == loaded.tokenizer.encode(text).ids
            row += 1
    assert batch.num_targets == 2 * row
    assert batch.images.shape == (2, 3, 3, 128, 128)


def test_clips_of_several_sizes_form_groups(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path)
    loaded = fresh_model(recipe)
    clips = [_plain_clip(hw) for hw in ((64, 96), (80, 80), (64, 96))]
    batch = Collator(loaded.model.config, loaded.tokenizer)(clips)
    assert [group.rows.tolist() for group in batch.groups] == [[0, 2], [1]]
    assert [group.resized_hw for group in batch.groups] == [(85, 128), (128, 128)]
    assert float(batch.images[0, 0, :, 85:].abs().max()) == 0.0


def test_an_expression_of_too_many_tokens_is_refused(tmp_path: Path) -> None:
    loaded = fresh_model(read_tiny(tmp_path))
    clip = _plain_clip((64, 64), text="red " * 64)
    with pytest.raises(DatasetError, match=r"plain: expression 'red .* has 65 tokens, at most 64"):
        Collator(loaded.model.config, loaded.tokenizer)([clip])


def test_training_never_draws_a_seed_that_tunes_or_evaluates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    whole = synthetic_clips.generate

    def noting(seed: int, index: int, **options: object) -> object:
        seeds.append(seed)
        return whole(seed, index, **options)

    monkeypatch.setattr(synthetic_clips, "generate", noting)
    source = source_of(read_tiny(tmp_path))
    for index in range(40):
        source.clip((0, index), 1)
    assert len(set(seeds)) == 40
    assert 0 <= min(seeds) <= max(seeds) < TUNE_SEED
    assert max(seeds) > TUNE_SEED // 2


def test_clips_about_the_past_begin_at_the_first_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: dict[str, set[int]] = {"attribute": set(), "track": set()}
    whole = synthetic_clips.generate

    def noting(seed: int, index: int, **options: object) -> object:
        starts[str(options["slice"])].add(options["frame_indices"][0])
        return whole(seed, index, **options)

    monkeypatch.setattr(synthetic_clips, "generate", noting)
    source = source_of(read_tiny(tmp_path))
    for index in range(30):
        source.clip((5, index), 2)
    assert starts["track"] == {0}
    assert len(starts["attribute"]) > 3


def test_clips_of_track_start_late_if_asked_for_and_only_where_their_words_are_true() -> None:
    """By itself the first frame of such a clip tells which object is meant: no other is."""
    data = Data(
        kind="synthetic",
        clips_per_batch=1,
        slices={"track": 1.0},
        max_stride=1,
        expressions_per_clip=2,
        late_starts=True,
    )
    source = synthetic_clips.SyntheticClips(data)
    starts = []
    for index in range(24):
        clip = source.clip((5, index), 4)
        seed, number = map(int, clip.name.split()[-1].split("/"))
        video = generate(seed, number, slice="track", texts_per_object=2)
        # Every frame has noise of its own, so only one place in the video fits.
        (start,) = {
            frame
            for frame in range(16)
            if np.array_equal(video.frames[frame : frame + 4], clip.frames)
        }
        truths = {e.text: e for e in video.expressions}
        for text in clip.texts:
            expression = truths[text]
            time = start / 15
            assert fits(expression.meaning, video.scene, time) == {expression.object_id}
        starts.append(start)
    assert max(starts) >= 4
    assert min(starts) == 0


def test_expressions_of_the_same_masks_name_the_same_object(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path, expressions_per_clip="4")
    batch = batch_of(recipe, fresh_model(recipe))
    (group,) = batch.groups
    for row, first in enumerate(batch.object_of.tolist()):
        assert torch.equal(group.masks[:, row], group.masks[:, first])
        assert first == min(
            other
            for other in range(len(batch.clip_of))
            if torch.equal(group.masks[:, other], group.masks[:, row])
        )
    assert len(set(batch.object_of.tolist())) < len(batch.object_of)
    kept = batch.with_rows(torch.tensor([1, 3]))
    assert kept.object_of.tolist() == batch.object_of[[1, 3]].tolist()
    assert batch.to(torch.device("cpu")).object_of.tolist() == batch.object_of.tolist()


def test_a_clip_names_different_objects_before_it_repeats_one(tmp_path: Path) -> None:
    source = source_of(read_tiny(tmp_path))
    for index in range(10):
        clip = source.clip((9, index), 1)
        assert not np.array_equal(clip.masks[0], clip.masks[1]) or not clip.masks[0].any()


def test_weights_of_slices_must_be_positive() -> None:
    with pytest.raises(UsageError, match=r"data.slices .*expected weights above 0"):
        synthetic_clips.SyntheticClips(
            Data(kind="synthetic", clips_per_batch=1, slices={"attribute": 0.0})
        )


def _plain_clip(size_hw: tuple[int, int], text: str = "red circle") -> Clip:
    frames = np.full((1, *size_hw, 3), 90, np.uint8)
    return Clip(frames, np.zeros((1, 1, *size_hw), np.bool_), (text,), "plain")


def _equal(first: Batch, second: Batch) -> bool:
    return (
        torch.equal(first.images, second.images)
        and torch.equal(first.input_ids, second.input_ids)
        and torch.equal(first.groups[0].masks, second.groups[0].masks)
    )


def test_some_rows_of_a_batch_are_the_batch_of_those_expressions(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path)
    loaded = fresh_model(recipe)
    collator = Collator(loaded.model.config, loaded.tokenizer)
    clips = [source_of(recipe).clip((1, row), 2) for row in range(3)]
    clips = [dataclasses.replace(c, texts=("a star", "the red ring")) for c in clips]
    whole = collator(clips)
    assert whole.first_rows(1).tolist() == [0, 2, 4]
    assert whole.first_rows(9).tolist() == list(range(6))
    chosen = [dataclasses.replace(c, texts=c.texts[:1], masks=c.masks[:1]) for c in clips]
    expected, found = collator(chosen), whole.with_rows(whole.first_rows(1))
    length = expected.input_ids.shape[1]
    assert torch.equal(found.input_ids[:, :length], expected.input_ids)
    assert torch.equal(found.attention_mask[:, :length], expected.attention_mask)
    assert not found.attention_mask[:, length:].any()
    assert torch.equal(found.clip_of, expected.clip_of)
    for ours, theirs in zip(found.groups, expected.groups, strict=True):
        assert torch.equal(ours.rows, theirs.rows)
        assert torch.equal(ours.masks, theirs.masks)


def test_no_sample_is_in_a_step_twice(tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(read_tiny(tmp_path, single_frame_share="0.0"), accumulate=3)
    keys: list[tuple[int, ...]] = []
    source: Any = SimpleNamespace(clip=lambda key, num_frames: keys.append(key))
    for rank in range(2):
        assert len(StepBatches(recipe, source, lambda clips: None, Place(rank, 2))[1]) == 3  # type: ignore[arg-type,return-value]
    assert len({key[:-1] for key in keys}) == 1
    assert sorted(key[-1] for key in keys) == list(range(2 * 3 * 2))


def test_masks_and_cell_labels_of_a_clip_are_those_of_its_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every text with the mask of the object that it names, every pose at its frame's time."""
    made: list[SyntheticVideo] = []
    whole = synthetic_clips.generate

    def noting(*arguments: Any, **options: Any) -> SyntheticVideo:
        made.append(whole(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(synthetic_clips, "generate", noting)
    source = source_of(read_tiny(tmp_path))
    clips = [source.clip((2, index), 2) for index in range(3)]
    for video, clip in zip(made, clips, strict=True):
        assert len(clip.texts) == 2
        for text, mask in zip(clip.texts, clip.masks, strict=True):
            (number,) = {e.object_id for e in video.expressions if e.text == text}
            np.testing.assert_array_equal(mask, video.mask(number))
        assert clip.shown is not None
        for row, frame in enumerate(video.frame_indices):
            for item in video.scene.objects:
                pose = item.pose_at(frame / 15)
                found = clip.shown.poses[row, item.object_id].tolist()
                assert found == pytest.approx((pose.x, pose.y, pose.radius), abs=1e-6)
    tokenizer: Any = SimpleNamespace(encode=lambda text: SimpleNamespace(ids=[1]))
    batch = Collator(preset("tiny"), tokenizer)(clips)
    assert batch.cells is not None
    for number, clip in enumerate(clips):
        assert clip.shown is not None
        expected = cell_labels(clip.shown, preset("tiny").grid_size)
        for ours, theirs in zip(batch.cells, expected, strict=True):
            assert torch.equal(ours[:, number], theirs)
