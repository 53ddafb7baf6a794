"""The shared step against RefSam.step, gradients through the track token, losses at image size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import batch_of, fresh_model, read_tiny
from torch import Tensor

from refsam_export.refsam.model.config import ModelConfig
from refsam_export.refsam.model.refsam import RefSam
from refsam_train.data.cells import CellLabels
from refsam_train.data.clips import Batch, Clip, Collator, MaskGroup
from refsam_train.learn import forward
from refsam_train.learn.activation_checkpoints import ForgetfulEncoder
from refsam_train.learn.forward import (
    ClipTraining,
    encode_frames,
    encode_texts,
    follow,
    image_logits,
    low_res_masks,
)
from refsam_train.learn.groups import trained_parameters
from refsam_train.learn.losses import dice_loss
from refsam_train.learn.match import Match
from refsam_train.learn.shared_step import FrameSide, TextSide
from refsam_train.recipe import Loss


@torch.no_grad()
def test_shared_step_equals_the_reference_expression_by_expression(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path, num_frames="3", single_frame_share="0.0")
    loaded = fresh_model(recipe)
    model = loaded.model.double()
    # Large texts: otherwise attention is uniform and its errors are invisible (refsam-model 5.1).
    model.config = _without_text_norm(model)
    batch = _doubled(batch_of(recipe, loaded))
    logits, _ = follow(model, batch, encode_frames(model, batch), encode_texts(model, batch))
    found = logits.double()
    assert float(found.std()) > 1e-3
    for row in range(len(batch.clip_of)):
        expected = _slow_logits(model, batch, row)
        # follow gives float32: half a unit of its last place.
        torch.testing.assert_close(found[:, row], expected, rtol=1e-6, atol=1e-6)


def test_gradient_flows_back_through_the_track_token(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path, single_frame_share="0.0")
    loaded = fresh_model(recipe)
    model = loaded.model.requires_grad_(True)
    batch = batch_of(recipe, loaded)
    logits, _ = follow(model, batch, encode_frames(model, batch), encode_texts(model, batch))
    logits[1].sum().backward()
    grad = model.track_token_mlp.linear1.weight.grad
    assert grad is not None
    assert float(grad.abs().max()) > 0.0


def test_one_frame_leaves_the_tracking_module_alone(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path, num_frames="1")
    loaded = fresh_model(recipe)
    model = loaded.model.requires_grad_(True)
    batch = batch_of(recipe, loaded)
    logits, _ = follow(model, batch, encode_frames(model, batch), encode_texts(model, batch))
    logits.sum().backward()
    assert model.track_token_mlp.linear1.weight.grad is None


def test_forgetting_activations_changes_no_gradient(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path)
    loaded = fresh_model(recipe)
    plain = ClipTraining(loaded.model, Loss(), bf16=False)
    trained = trained_parameters(plain, recipe)
    batch = batch_of(recipe, loaded)
    encoder = ForgetfulEncoder(loaded.model.image_encoder, loaded.model.config.adapter_blocks)
    gradients = []
    for image_encoder in (None, encoder):
        training = ClipTraining(loaded.model, Loss(), bf16=False, image_encoder=image_encoder)
        training(batch).loss.backward()
        gradients.append({n: p.grad.clone() for n, (p, _) in trained.items() if p.grad is not None})
        loaded.model.zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_loss_is_the_mean_over_frames_and_expressions_of_every_group(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path)
    loaded = fresh_model(recipe)
    collator = Collator(loaded.model.config, loaded.tokenizer)
    clips = [_striped_clip((64, 96)), _striped_clip((80, 80)), _striped_clip((64, 96))]
    training = ClipTraining(loaded.model, Loss(focal=0.0), bf16=False)
    with torch.no_grad():
        together = training(collator(clips)).loss.item()
        alone = [training(collator([clip])).loss.item() for clip in clips]
    assert together == pytest.approx(sum(alone) / 3, rel=1e-5)


def test_image_logits_cut_off_the_padding() -> None:
    logits = torch.zeros(1, 1, 8, 8)
    logits[..., :4, :] = 1.0
    group = MaskGroup(torch.tensor([0]), torch.zeros(1, 1, 20, 40, dtype=torch.uint8), (16, 32))
    resized_logits = image_logits(logits, 32, group)
    assert resized_logits.shape == (1, 1, 20, 40)
    assert float(resized_logits[..., :15, :].min()) == pytest.approx(1.0)


def test_low_resolution_masks_are_shares_of_pixels() -> None:
    masks = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    masks[..., :3, :] = 1
    found = low_res_masks(MaskGroup(torch.tensor([0]), masks, (8, 8)), 8, 4)
    assert found[0, 0, :, 0].tolist() == [1.0, 0.5, 0.0, 0.0]


def test_low_resolution_masks_of_a_wide_image_end_above_the_padding() -> None:
    masks = torch.zeros(1, 1, 4, 8, dtype=torch.uint8)
    masks[..., 2:, :6] = 1
    found = low_res_masks(MaskGroup(torch.tensor([0]), masks, (4, 8)), 8, 4)
    expected = torch.zeros(4, 4)
    expected[1, :3] = 1.0
    assert torch.equal(found[0, 0], expected)


class NotingMatch(Match):
    """Keeps what is matched."""

    def forward(self, embedding: Tensor, vector: Tensor, named: Tensor) -> Tensor:
        self.noted = (embedding, vector, named)
        return super().forward(embedding, vector, named)


def test_all_expressions_are_matched_in_the_first_frame_and_the_first_ones_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three clips of two frames with two expressions each, the masks in two groups."""
    torch.manual_seed(0)
    frames = FrameSide(torch.zeros(6, 256, 2, 2), torch.randn(6, 2, 256, 2, 2))
    text = TextSide(
        torch.randn(6, 3, 256),
        torch.ones(6, 3, dtype=torch.bool),
        torch.randn(6, 4, 256),
        torch.ones(6, 4, 4, 256),
    )
    masks = torch.zeros(2, 6, 32, 32, dtype=torch.uint8)
    for frame in range(2):
        for row in range(6):
            masks[frame, row, 4 * row : 4 * row + 4, 8 * frame : 24] = 1
    groups = tuple(
        MaskGroup(torch.tensor(rows), masks[:, rows], (32, 32)) for rows in ([0, 1, 4, 5], [2, 3])
    )
    labels = CellLabels(
        torch.zeros(2, 3, 3, 2, 2, dtype=torch.int64),
        torch.zeros(2, 3, 16, 2, 2),
        torch.zeros(2, 3, 5, 2, 2),
    )
    images, ids = torch.zeros(2, 3, 3, 32, 32), torch.ones(6, 3, dtype=torch.int64)
    clip_of, object_of = torch.tensor([0, 0, 1, 1, 2, 2]), torch.arange(6)
    batch = Batch(images, ids, ids, clip_of, object_of, groups, labels)
    model: Any = SimpleNamespace(config=SimpleNamespace(hda_levels=2, image_size=32))
    training = ClipTraining(model, Loss(resolution="low-res", cells=1.0, decoded=1), bf16=False)
    training.match = match = NotingMatch()

    def decoded(
        model: Any, batch: Batch, frames: FrameSide, text: TextSide, later: TextSide
    ) -> tuple[Tensor, Tensor]:
        assert torch.equal(later.words, text.words)
        assert batch.clip_of.tolist() == [0, 1, 2]
        assert torch.equal(text.words, whole_text.words[[0, 2, 4]])
        return masks[:, [0, 2, 4], ::4, ::4].float() * 20.0 - 10.0, torch.zeros(2, 3, 256)

    whole_text = text
    monkeypatch.setattr(forward, "encode_frames", lambda *_: frames)
    monkeypatch.setattr(forward, "encode_texts", lambda *_: text)
    monkeypatch.setattr(forward, "follow", decoded)
    result = training(batch)
    assert result.iou.item() == 1.0
    embedding, sentence, named = match.noted
    for place, row in enumerate([0, 1, 4, 5, 2, 3]):
        assert torch.equal(embedding[place], frames.levels[row // 2, -1])
        assert torch.equal(sentence[place], text.text[row, -1])
        assert torch.equal(named[place], masks[0, row].float())


def test_bf16_gives_nearly_the_same_loss(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path)
    loaded = fresh_model(recipe)
    batch = batch_of(recipe, loaded)
    with torch.no_grad():
        losses = [
            ClipTraining(loaded.model, Loss(), bf16=bf16)(batch).loss.item()
            for bf16 in (False, True)
        ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_few_steps_on_one_batch_lower_its_loss(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path)
    loaded = fresh_model(recipe)
    training = ClipTraining(loaded.model, Loss(resolution="low-res"), bf16=False)
    parameters = [p for p, _ in trained_parameters(training, recipe).values()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    batch, losses = batch_of(recipe, loaded), []
    for _ in range(8):
        optimiser.zero_grad()
        loss = training(batch).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02


def test_dice_at_image_size_is_that_of_the_enlarged_logits(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path, num_frames="1")
    loaded = fresh_model(recipe)
    batch = batch_of(recipe, loaded)
    with torch.no_grad():
        logits, _ = follow(
            loaded.model,
            batch,
            encode_frames(loaded.model, batch),
            encode_texts(loaded.model, batch),
        )
        result = ClipTraining(loaded.model, Loss(focal=0.0), bf16=False)(batch)
    (group,) = batch.groups
    enlarged = torch.nn.functional.interpolate(logits, (128, 128), mode="bilinear")
    enlarged = torch.nn.functional.interpolate(enlarged, (256, 256), mode="bilinear")
    expected = dice_loss(enlarged, group.masks.float()).mean()
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def _slow_logits(model: RefSam, batch: Batch, row: int) -> Tensor:
    mask = batch.attention_mask[row].bool()
    words, sentence = model.encode_text(
        batch.input_ids[row : row + 1, mask], batch.attention_mask[row : row + 1, mask]
    )
    track, has_track, logits = words.new_zeros(1, 256), torch.tensor([False]), []
    for image in batch.images[:, batch.clip_of[row]]:
        embedding, features = model.encode_image(image[None])
        word_mask = torch.ones_like(words[..., 0], dtype=torch.bool)
        out = model.step(embedding, features, words, word_mask, sentence, track, has_track)
        logits.append(out.low_res_logits[0, 0])
        track, has_track = out.next_track_token, torch.tensor([True])
    return torch.stack(logits)


def _without_text_norm(model: RefSam) -> ModelConfig:
    model.resizer[2].weight.mul_(30.0)
    return replace(model.config, l2norm_text=False)


def _doubled(batch: Batch) -> Batch:
    return replace(batch, images=batch.images.double())


def _striped_clip(size_hw: tuple[int, int]) -> Clip:
    frames = np.zeros((2, *size_hw, 3), np.uint8)
    frames[:, ::4] = 200
    masks = np.zeros((1, 2, *size_hw), np.bool_)
    masks[..., : size_hw[1] // 3] = True
    return Clip(frames, masks, ("red circle",), "striped")
