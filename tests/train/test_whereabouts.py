"""The auxiliary task of track tokens: where their object is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import batch_of, fresh_model, read_tiny

from refsam_train.forward import (
    ClipTraining,
    clip_logits,
    encode_frames,
    encode_texts,
    follow,
)
from refsam_train.groups import trained_parameters
from refsam_train.recipe import Loss
from refsam_train.shared_step import TextSide, shared_step
from refsam_train.whereabouts import WhereHead, whereabouts


def test_places_and_sizes_are_those_of_the_masks() -> None:
    """Against the mean of pixel coordinates."""
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 3, 64, 64), np.uint8)
    masks[0, 0, 8:24, 40:60] = 1
    masks[1, 1] = rng.random((64, 64)) < 0.2
    masks[0, 2, 63, 0] = 1
    found = whereabouts(torch.from_numpy(masks))
    for frame, row in np.ndindex(2, 3):
        y, x = np.nonzero(masks[frame, row])
        assert found.visible[frame, row] == (len(x) > 0)
        if len(x):
            expected = (
                ((x.mean() + 0.5) / 64 - 0.5) * 4,
                ((y.mean() + 0.5) / 64 - 0.5) * 4,
                math.log(math.sqrt(len(x) / math.pi) / 64 / 0.105),
            )
            assert found.poses[frame, row].tolist() == pytest.approx(expected, abs=1e-5)


def test_what_is_out_of_sight_has_no_place_to_be_told() -> None:
    torch.manual_seed(0)
    head, tokens = WhereHead(), torch.randn(2, 1, 256) / 16
    masks = torch.zeros(2, 1, 32, 32)
    masks[0, 0, 4:9, 4:9] = 1.0
    true = whereabouts(masks)
    loss = head(tokens, true)
    elsewhere = true.poses.clone()
    elsewhere[1] += 5.0
    assert head(tokens, true._replace(poses=elsewhere)) == loss
    elsewhere[0] += 5.0
    assert head(tokens, true._replace(poses=elsewhere)) > loss + 1.0
    assert head(tokens, true._replace(visible=~true.visible)) != loss
    assert torch.isfinite(head(tokens, whereabouts(torch.zeros(2, 1, 32, 32))))


def test_a_token_that_knows_is_read_without_loss() -> None:
    head = WhereHead()
    with torch.no_grad():
        head.head.weight.zero_()
        head.head.bias.zero_()
        for row in range(4):
            head.head.weight[row, row] = 1.0
    masks = torch.zeros(1, 1, 32, 32)
    masks[0, 0, 2:12, 20:30] = 1.0
    true = whereabouts(masks)
    tokens = torch.zeros(1, 1, 256)
    tokens[..., :3], tokens[..., 3] = true.poses / 16, 2.0
    assert head(tokens, true).item() < 1e-6


def test_every_frame_gives_a_token_and_the_next_frame_sees_it(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path, single_frame_share="0.0")
    loaded = fresh_model(recipe)
    model, batch = loaded.model, batch_of(recipe, loaded)
    frames, text = encode_frames(model, batch), encode_texts(model, batch)
    logits, tracks = follow(model, batch, frames, text)
    assert torch.equal(clip_logits(model, batch, frames, text), logits)
    assert tracks.shape == (*logits.shape[:2], 256)
    with torch.no_grad():
        model.track_token_mlp.norm.bias.add_(1.0)
    changed, moved = follow(model, batch, frames, text)
    assert torch.equal(changed[0], logits[0])
    assert not torch.allclose(changed[1], logits[1])
    torch.testing.assert_close(moved[0], tracks[0] + 1.0)


def test_the_head_is_trained_beside_the_model_and_reaches_the_tracking_module(
    tmp_path: Path,
) -> None:
    recipe = read_tiny(tmp_path, single_frame_share="1.0")
    loaded = fresh_model(recipe)
    training = ClipTraining(loaded.model, Loss(whereabouts=1.0, dice=0.0, focal=0.0), bf16=False)
    trained = trained_parameters(training, recipe)
    assert [n for n in trained if n.startswith("auxiliary.")] == [
        "auxiliary.where.head.weight",
        "auxiliary.where.head.bias",
    ]
    result = training(batch_of(recipe, loaded))
    result.loss.backward()
    assert result.where.item() > 0.0
    for name in ("track_token_mlp.linear1.weight", "auxiliary.where.head.weight"):
        gradient = trained[name][0].grad
        assert gradient is not None
        assert gradient.abs().max() > 0.0


def test_the_muted_are_heard_in_the_first_frame_only(tmp_path: Path) -> None:
    """Then their words change nothing more, and those of the others change what they did."""
    recipe = read_tiny(tmp_path, single_frame_share="0.0")
    loaded = fresh_model(recipe)
    model, batch = loaded.model, batch_of(recipe, loaded)
    frames, text = encode_frames(model, batch), encode_texts(model, batch)
    heard, _ = follow(model, batch, frames, text)
    muted = torch.zeros(len(text.words), dtype=torch.bool)
    muted[0] = True
    found, _ = follow(model, batch, frames, text, muted)
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
