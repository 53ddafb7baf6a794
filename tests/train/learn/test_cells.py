"""The auxiliary task: what cells show, and the loss of saying so."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import batch_of, fresh_model, read_tiny

from refsam_bench.synthetic import SyntheticVideo, generate
from refsam_bench.synthetic.palette import COLOURS
from refsam_bench.synthetic.shapes import OUTLINES
from refsam_bench.synthetic.texture import PATTERNS
from refsam_train.data.cells import UNNAMED, CellLabels, Shown, cell_labels, shown_objects
from refsam_train.learn.cells import CellHeads
from refsam_train.learn.forward import ClipTraining
from refsam_train.learn.groups import trained_parameters
from refsam_train.recipe import Loss

TABLES = (tuple(OUTLINES), tuple(COLOURS), tuple(PATTERNS))
GRID = 16


def test_cells_tell_of_the_object_that_covers_most_of_them() -> None:
    """Against a loop over all cells and objects."""
    video = generate(4, 1, slice="attribute", frame_indices=[0, 9])
    times = [0.0, 9 / 15]
    labels = cell_labels(shown_objects(video.scene, video.label_map, times), GRID)
    owned = [
        check_cell(video, labels, row, time, i, j)
        for row, time in enumerate(times)
        for i in range(GRID)
        for j in range(GRID)
    ]
    assert sum(owned) > 40


def check_cell(
    video: SyntheticVideo, labels: CellLabels, row: int, time: float, i: int, j: int
) -> bool:
    """Check one cell and return whether it belongs to an object."""
    cell = video.label_map[row, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16]
    objects = video.scene.objects
    item = max(objects, key=lambda item: int((cell == item.object_id).sum()))
    found = labels.names[row, :, i, j].tolist()
    if (cell == item.object_id).sum() < 32:
        assert found == [UNNAMED] * 3
        return False
    said = [table[place] for table, place in zip(TABLES, found, strict=True)]
    assert said == [item.shape, item.colour_at(time), item.pattern]
    pose = item.pose_at(time)
    right, down, size, x, y = labels.poses[row, :, i, j].tolist()
    assert (x / 4 + 0.5, y / 4 + 0.5) == pytest.approx((pose.x, pose.y), abs=1e-5)
    assert (j + 0.5) / GRID + right * 0.125 == pytest.approx(pose.x, abs=1e-5)
    assert (i + 0.5) / GRID + down * 0.125 == pytest.approx(pose.y, abs=1e-5)
    assert math.exp(size) * 0.105 == pytest.approx(pose.radius, rel=1e-5)
    return True


def test_silhouettes_are_the_masks_at_the_decoders_resolution() -> None:
    video = generate(4, 2, slice="size", frame_indices=[0])
    labels = cell_labels(shown_objects(video.scene, video.label_map, [0.0]), GRID)
    parts = labels.silhouettes[0].reshape(4, 4, GRID, GRID).permute(2, 0, 3, 1).reshape(64, 64)
    shares = (video.label_map[0] > 0).reshape(64, 4, 64, 4).mean((1, 3))
    np.testing.assert_array_equal(parts.numpy(), (shares >= 0.5).astype(np.float32))
    assert 0.05 < parts.mean() < 0.6


def test_a_colour_that_is_changing_has_no_name() -> None:
    for index in range(40):
        video = generate(5, index, slice="track", num_frames=16)
        fading = [o for o in video.scene.objects if o.fade is not None]
        if fading:
            break
    fade = fading[0].fade
    assert fade is not None
    time = round((fade.start + fade.end) / 2 * 15) / 15
    assert fading[0].colour_at(time) is None
    shown = shown_objects(video.scene, video.label_map[:1], [time])
    shape, colour, _ = shown.names[0, fading[0].object_id]
    assert (TABLES[0][shape], colour) == (fading[0].shape, UNNAMED)


def one_object(place: int) -> Shown:
    """A frame whose left half shows an object with place `place` in all lists."""
    label_map = np.zeros((1, 32, 32), np.uint8)
    label_map[:, :, :16] = 1
    names = np.full((1, 2, 3), place, np.int64)
    names[:, 0] = UNNAMED
    return Shown(label_map, names, np.full((1, 2, 3), 0.105, np.float32))


def test_loss_of_indifferent_heads_is_that_of_guessing() -> None:
    heads = CellHeads(2)
    for parameter in heads.parameters():
        torch.nn.init.zeros_(parameter)
    labels = cell_labels(one_object(2), 2)
    without_poses = CellLabels(labels.names, labels.silhouettes, torch.zeros_like(labels.poses))
    loss, right = heads(torch.randn(1, 2, 256, 2, 2), without_poses)
    guess = sum(math.log(len(table)) for table in TABLES) / len(TABLES)
    assert loss.item() == pytest.approx(guess + 2.0 * math.log(2.0), rel=1e-6)
    assert right.item() == 0.0


def test_every_term_of_the_loss_counts_and_cells_without_object_do_not() -> None:
    torch.manual_seed(0)
    heads = CellHeads(1)
    levels = torch.nn.functional.normalize(torch.randn(1, 1, 256, 2, 2), dim=2)
    labels = cell_labels(one_object(2), 2)
    loss, _ = heads(levels, labels)
    changed = [
        CellLabels(torch.where(labels.names >= 0, 1, labels.names), *labels[1:]),
        CellLabels(labels.names, 1.0 - labels.silhouettes, labels.poses),
        CellLabels(*labels[:2], labels.poses + 1.0),
    ]
    assert all(abs(heads(levels, other)[0].item() - loss.item()) > 1e-3 for other in changed)
    elsewhere = labels.poses.clone()
    elsewhere[..., 1] += 9.0
    assert heads(levels, CellLabels(*labels[:2], elsewhere))[0].item() == loss.item()
    nothing = CellLabels(torch.full_like(labels.names, UNNAMED), *labels[1:])
    assert torch.isfinite(heads(levels, nothing)[0])


def test_the_share_of_right_shapes_is_that_of_the_last_level() -> None:
    heads = CellHeads(1)
    with torch.no_grad():
        heads.heads[0].weight.zero_()
        heads.heads[0].bias.zero_()
        heads.heads[0].bias[3] = 1.0
    levels = torch.randn(1, 1, 256, 2, 2)
    assert heads(levels, cell_labels(one_object(3), 2))[1].item() == 1.0
    assert heads(levels, cell_labels(one_object(2), 2))[1].item() == 0.0


def test_heads_are_trained_beside_the_model_and_named_apart(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path)
    loaded = fresh_model(recipe)
    training = ClipTraining(loaded.model, Loss(cells=1.0), bf16=False)
    trained = trained_parameters(training, recipe)
    auxiliary = [name for name in trained if name.startswith("auxiliary.")]
    assert len(auxiliary) == 2 * loaded.model.config.hda_levels + 2  # scale and bias of matching
    result = training(batch_of(recipe, loaded))
    result.loss.backward()
    assert result.cells.item() > 1.0
    assert all(trained[name][0].grad is not None for name in auxiliary)
    assert not any(name.startswith("cell_heads") for name in loaded.model.state_dict())


def test_heads_see_the_cell_that_they_speak_of() -> None:
    """An object in the upper right cell, whose features name its shape; the others say another."""
    heads = CellHeads(1)
    with torch.no_grad():
        heads.heads[0].weight.copy_(torch.eye(*heads.heads[0].weight.shape))
        heads.heads[0].bias.zero_()
    label_map = np.zeros((1, 32, 32), np.uint8)
    label_map[:, :16, 16:] = 1
    levels = torch.zeros(1, 1, 256, 2, 2)
    levels[:, :, 2] = 1.0
    levels[..., 0, 1] = 0.0
    levels[:, :, 3, 0, 1] = 1.0
    for shape, share in ((3, 1.0), (2, 0.0)):
        shown = Shown(label_map, one_object(shape).names, one_object(shape).poses)
        assert heads(levels, cell_labels(shown, 2))[1].item() == share
