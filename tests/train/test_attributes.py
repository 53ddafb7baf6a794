"""The auxiliary task: what every pixel shows, and the loss of naming it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import batch_of, fresh_model, read_tiny

from refsam_bench.synthetic import generate
from refsam_bench.synthetic.palette import COLOURS
from refsam_bench.synthetic.shapes import OUTLINES
from refsam_bench.synthetic.texture import PATTERNS
from refsam_train.attributes import UNNAMED, AttributeHeads, attribute_maps
from refsam_train.forward import ClipTraining
from refsam_train.groups import trained_parameters
from refsam_train.recipe import Loss


def test_maps_name_every_object_where_it_is_seen() -> None:
    video = generate(4, 1, slice="attribute", frame_indices=[0, 9])
    maps = attribute_maps(video, 16)
    assert maps.shape == (2, 3, 256, 256)
    assert not maps.transpose(1, 0, 2, 3)[:, video.label_map == 0].any()
    for item in video.scene.objects:
        names = (item.shape, item.colour, item.pattern)
        for row, table in enumerate((OUTLINES, COLOURS, PATTERNS)):
            found = np.unique(maps[:, row][video.mask(item.object_id)])
            assert found.tolist() == [1 + list(table).index(names[row])]


def test_a_colour_that_is_changing_has_no_name() -> None:
    for index in range(40):
        video = generate(5, index, slice="track", num_frames=16)
        fading = [o for o in video.scene.objects if o.fade is not None]
        if fading:
            break
    maps = attribute_maps(video, 16)
    fade = fading[0].fade
    assert fade is not None
    frame = round((fade.start + fade.end) / 2 * 15)
    assert fading[0].colour_at(frame / 15) is None
    seen = video.mask(fading[0].object_id)[frame]
    assert set(maps[frame, 1][seen].tolist()) == {UNNAMED}
    assert UNNAMED not in maps[frame, 0]


def test_loss_of_indifferent_heads_is_the_mean_entropy_of_a_guess() -> None:
    heads = AttributeHeads(2)
    for parameter in heads.parameters():
        torch.nn.init.zeros_(parameter)
    classes = torch.randint(0, 4, (3, 3, 64, 64), dtype=torch.uint8)
    loss = heads(torch.randn(3, 2, 256, 4, 4), classes).item()
    sizes = [1 + len(table) for table in (OUTLINES, COLOURS, PATTERNS)]
    assert loss == pytest.approx(sum(map(math.log, sizes)) / 3, rel=1e-6)


def test_a_cell_has_the_class_of_its_centre_and_unnamed_cells_do_not_count() -> None:
    heads = AttributeHeads(1)
    levels = torch.randn(1, 1, 256, 2, 2)
    classes = torch.full((1, 3, 32, 32), UNNAMED, dtype=torch.uint8)
    classes[..., 8, 24] = 2
    logits = heads.heads[0](levels[0, 0, :, 0, 1] * 16.0).split(
        [1 + len(table) for table in (OUTLINES, COLOURS, PATTERNS)]
    )
    expected = torch.stack([-part.log_softmax(0)[2] for part in logits]).mean().item()
    assert heads(levels, classes).item() == pytest.approx(expected, rel=1e-5)


def test_heads_are_trained_beside_the_model_and_named_apart(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path)
    loaded = fresh_model(recipe)
    training = ClipTraining(loaded.model, Loss(attributes=1.0), bf16=False)
    trained = trained_parameters(training, recipe)
    auxiliary = [name for name in trained if name.startswith("auxiliary.")]
    assert len(auxiliary) == 2 * loaded.model.config.hda_levels
    result = training(batch_of(recipe, loaded))
    result.loss.backward()
    assert result.attributes.item() > 1.0
    assert all(trained[name][0].grad is not None for name in auxiliary)
    assert not any(name.startswith("attribute_heads") for name in loaded.model.state_dict())
