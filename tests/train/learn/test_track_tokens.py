"""Track tokens in training: who sees them, and what they must recall."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_training import batch_of, fresh_model, read_tiny

from refsam_train.learn import forward
from refsam_train.learn.forward import (
    ClipTraining,
    encode_frames,
    encode_texts,
    follow,
    misled_text,
    muted_text,
)
from refsam_train.learn.groups import trained_parameters
from refsam_train.learn.match import Match
from refsam_train.learn.shared_step import FrameSide, TextSide, shared_step
from refsam_train.recipe import Loss


def test_every_frame_gives_a_token_and_the_next_frame_sees_it(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path, single_frame_share="0.0")
    loaded = fresh_model(recipe)
    model, batch = loaded.model, batch_of(recipe, loaded)
    frames, text = encode_frames(model, batch), encode_texts(model, batch)
    logits, tracks = follow(model, batch, frames, text)
    assert tracks.shape == (*logits.shape[:2], 256)
    with torch.no_grad():
        model.track_token_mlp.norm.bias.add_(1.0)
    changed, moved = follow(model, batch, frames, text)
    assert torch.equal(changed[0], logits[0])
    assert not torch.allclose(changed[1], logits[1])
    torch.testing.assert_close(moved[0], tracks[0] + 1.0)


def test_tokens_are_matched_with_their_object_one_frame_later(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path, single_frame_share="0.0")
    loaded = fresh_model(recipe)
    model, batch = loaded.model, batch_of(recipe, loaded)
    training = ClipTraining(model, Loss(recall=1.0, dice=0.0, focal=0.0), bf16=False)
    with torch.no_grad():
        result = training(batch)
        frames, text = encode_frames(model, batch), encode_texts(model, batch)
        _, tracks = follow(model, batch, frames, text)
        (group,) = batch.groups
        second = frames.levels[len(batch.images[0]) + batch.clip_of, -1]
        expected = Match()(second, tracks[0], group.masks[1].float())
    assert group.rows.tolist() == list(range(len(batch.clip_of)))
    torch.testing.assert_close(result.recall, expected)
    torch.testing.assert_close(result.loss, expected)
    assert expected.item() > 0.0


def test_recall_is_trained_beside_the_model_and_reaches_the_tracking_module(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path, single_frame_share="0.0")
    loaded = fresh_model(recipe)
    training = ClipTraining(loaded.model, Loss(recall=1.0, dice=0.0, focal=0.0), bf16=False)
    trained = trained_parameters(training, recipe)
    auxiliary = [name for name in trained if name.startswith("auxiliary.")]
    assert auxiliary == ["auxiliary.recall.scale", "auxiliary.recall.bias"]
    training(batch_of(recipe, loaded)).loss.backward()
    for name in ("track_token_mlp.linear1.weight", "auxiliary.recall.scale"):
        gradient = trained[name][0].grad
        assert gradient is not None
        assert gradient.abs().max() > 0.0


def test_single_frames_have_nothing_to_recall(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path, single_frame_share="1.0")
    loaded = fresh_model(recipe)
    training = ClipTraining(loaded.model, Loss(recall=1.0), bf16=False)
    assert training(batch_of(recipe, loaded)).recall.item() == 0.0


def test_the_muted_are_heard_in_the_first_frame_only(tmp_path: Path) -> None:
    """Then their words change nothing more, and those of the others change what they did."""
    recipe = read_tiny(tmp_path, single_frame_share="0.0")
    loaded = fresh_model(recipe)
    model, batch = loaded.model, batch_of(recipe, loaded)
    frames, text = encode_frames(model, batch), encode_texts(model, batch)
    heard, _ = follow(model, batch, frames, text)
    muted = torch.zeros(len(text.words), dtype=torch.bool)
    muted[0] = True
    found, _ = follow(model, batch, frames, text, muted_text(text, muted))
    assert torch.equal(found[0], heard[0])
    torch.testing.assert_close(found[1, 1:], heard[1, 1:])
    assert not torch.allclose(found[1, 0], heard[1, 0])
    silent = TextSide(*(torch.zeros_like(part) for part in text))
    _, tracks = follow(model, batch, frames, text)
    frame_of = batch.images.shape[1] + batch.clip_of
    has_track = torch.ones_like(muted)
    alone, _ = shared_step(model, frames, frame_of, silent, tracks[0], has_track)
    torch.testing.assert_close(found[1, 0], alone[0])


def test_training_mutes_the_share_that_is_asked_for(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path, single_frame_share="0.0")
    loaded = fresh_model(recipe)
    batch = batch_of(recipe, loaded)
    losses = []
    for share in (0.0, 1.0):
        training = ClipTraining(loaded.model, Loss(), bf16=False, muted_share=share)
        losses.append(training(batch).loss.item())
    assert losses[0] != losses[1]
    single = read_tiny(tmp_path, single_frame_share="1.0")
    batch = batch_of(single, loaded)
    for share in (0.0, 1.0):
        training = ClipTraining(loaded.model, Loss(), bf16=False, muted_share=share)
        losses.append(training(batch).loss.item())
    assert losses[2] == losses[3]


def test_the_misled_hear_their_next_sibling_of_another_object() -> None:
    parts = [torch.arange(6.0)[:, None] + place for place in (0.0, 10.0, 20.0, 30.0)]
    clip_of = torch.tensor([0, 0, 0, 1, 2, 2])
    everyone, apart = torch.ones(6, dtype=torch.bool), torch.arange(6)
    misled = misled_text(TextSide(*parts), everyone, clip_of, apart)
    for part, whole in zip(misled, parts, strict=True):
        assert torch.equal(part, whole[[1, 2, 0, 3, 5, 4]])
    one = misled_text(TextSide(*parts), torch.arange(6) == 2, clip_of, apart)
    assert one.words.flatten().tolist() == [0.0, 1.0, 0.0, 3.0, 4.0, 5.0]
    # The first and the last expression of the first clip name the same, both of the last clip too.
    twice = torch.tensor([7, 8, 7, 7, 9, 9])
    misled = misled_text(TextSide(*parts), everyone, clip_of, twice)
    assert misled.words.flatten().tolist() == [1.0, 2.0, 1.0, 3.0, 4.0, 5.0]


def test_misled_share_is_the_share_of_misled_expressions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them: the loss is that of the siblings' words in the second frame."""
    recipe = read_tiny(tmp_path, single_frame_share="0.0")
    loaded = fresh_model(recipe)
    batch = batch_of(recipe, loaded)
    seen = {}

    def noting(*arguments: TextSide) -> tuple[torch.Tensor, torch.Tensor]:
        seen["later"] = arguments[4]
        return follow(*arguments)

    monkeypatch.setattr(forward, "follow", noting)
    with torch.no_grad():
        ClipTraining(loaded.model, Loss(), bf16=False, misled_share=1.0)(batch)
        text = encode_texts(loaded.model, batch)
    everyone = torch.ones(len(text.words), dtype=torch.bool)
    expected = misled_text(text, everyone, batch.clip_of, batch.object_of)
    assert torch.equal(seen["later"].words, expected.words)
    assert not torch.equal(expected.words, text.words)


def test_every_expression_draws_by_itself_and_nobody_is_both_muted_and_misled() -> None:
    """Whoever were both would only be muted, and the misled would be fewer than asked for."""
    count = 2000
    model: Any = SimpleNamespace()
    training = ClipTraining(model, Loss(), bf16=False, muted_share=0.5, misled_share=0.25)
    words = torch.arange(1.0, count + 1)[:, None, None]
    heard = torch.ones(count, 1, dtype=torch.bool)
    batch: Any = SimpleNamespace(
        clip_of=torch.zeros(count, dtype=torch.int64), object_of=torch.arange(count)
    )
    torch.manual_seed(0)
    later = training._later_text(TextSide(words, heard, words, words[..., None]), batch)
    muted = ~later.word_mask[:, 0]
    misled = ~muted & (later.words != words)[:, 0, 0]
    assert muted.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert misled.float().mean().item() == pytest.approx(0.25, abs=0.05)


def test_the_muted_stay_muted_to_the_end(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path, num_frames="3", single_frame_share="0.0")
    loaded = fresh_model(recipe)
    model, batch = loaded.model, batch_of(recipe, loaded)
    with torch.no_grad():
        frames, text = encode_frames(model, batch), encode_texts(model, batch)
        everyone = torch.ones(len(text.words), dtype=torch.bool)
        silent = muted_text(text, everyone)
        found, tracks = follow(model, batch, frames, text, silent)
        third = 2 * batch.images.shape[1] + batch.clip_of
        expected, _ = shared_step(model, frames, third, silent, tracks[1], everyone)
    torch.testing.assert_close(found[2], expected)


def test_every_token_is_matched_with_the_frame_after_its_own(tmp_path: Path) -> None:
    """Three frames, so that an order of frames and expressions shows; and a weight that does."""
    recipe = read_tiny(tmp_path, num_frames="3", single_frame_share="0.0")
    loaded = fresh_model(recipe)
    model, batch = loaded.model, batch_of(recipe, loaded)
    training = ClipTraining(model, Loss(recall=2.0, dice=0.0, focal=0.0), bf16=False)
    (group,) = batch.groups
    with torch.no_grad():
        result = training(batch)
        frames, text = encode_frames(model, batch), encode_texts(model, batch)
        _, tracks = follow(model, batch, frames, text)
        rows = [(frame, row) for frame in (1, 2) for row in range(len(batch.clip_of))]
        places = [frame * batch.images.shape[1] + int(batch.clip_of[row]) for frame, row in rows]
        tokens = torch.stack([tracks[frame - 1, row] for frame, row in rows])
        masks = torch.stack([group.masks[frame, row] for frame, row in rows])
        expected = Match()(frames.levels[places, -1], tokens, masks.float())
    torch.testing.assert_close(result.recall, expected)
    torch.testing.assert_close(result.loss, 2.0 * expected)


def test_recall_teaches_later_frames_what_to_show(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path, single_frame_share="0.0")
    loaded = fresh_model(recipe)
    model, batch = loaded.model, batch_of(recipe, loaded)
    training = ClipTraining(model, Loss(recall=1.0), bf16=False)
    with torch.no_grad():
        frames, text = encode_frames(model, batch), encode_texts(model, batch)
        _, tracks = follow(model, batch, frames, text)
    levels = frames.levels.requires_grad_(True)
    training._recall_loss(FrameSide(frames.base, levels), tracks, batch).backward()
    assert levels.grad is not None
    num_clips = batch.images.shape[1]
    assert levels.grad[num_clips:, -1].abs().max() > 0.0
    assert not levels.grad[:num_clips].any()
    assert not levels.grad[:, :-1].any()
