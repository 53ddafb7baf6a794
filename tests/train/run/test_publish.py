"""Published weights: the average, rounded to what fp16 can hold, readable as a model again."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from tiny_training import fresh_model, read_tiny, write_recipe

from refsam_bench.synthetic import vocabulary
from refsam_export.refsam.checkpoint import canonical_tensors, load_model, save_source
from refsam_train.recipe import read_recipe
from refsam_train.run.publish import publish, round_to_fp16
from refsam_train.run.start import Sources
from refsam_train.run.train import RunRequest, train
from refsam_trt.contract.manifest import Training, TrainingRun
from refsam_trt.errors import CheckpointError


def test_published_weights_are_the_rounded_average(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, resolution='"low-res"\ncells = 1.0')
    train(path, RunRequest(output=tmp_path / "run", show_progress=False, max_steps=2))
    checkpoint, target = tmp_path / "run" / "checkpoint.safetensors", tmp_path / "out.safetensors"
    published = publish(read_recipe(path), checkpoint, Sources(), target)
    assert published.step == 2
    assert 0.0 < published.largest_change < 1e-2
    stored = safetensors.torch.load_file(checkpoint)
    tensors = canonical_tensors(load_model("tiny", checkpoint=target).model)
    assert len(tensors) == published.num_tensors
    for name, value in tensors.items():
        assert torch.equal(value, value.half().float()), name
        if f"average.{name}" in stored:
            assert torch.equal(value, stored[f"average.{name}"].half().float()), name
    changed = stored["average.dense_conv.weight"] - stored["model.dense_conv.weight"]
    assert float(changed.abs().max()) > 0.0


def test_the_file_says_how_it_was_trained(tmp_path: Path) -> None:
    """Runs in their order, and the words of all; of a start that does not tell, none are known."""
    path = write_recipe(tmp_path)
    train(path, RunRequest(output=tmp_path / "run", show_progress=False, max_steps=1))
    recipe, checkpoint = read_recipe(path), tmp_path / "run" / "checkpoint.safetensors"
    run = TrainingRun("tiny", recipe.digest(), "synthetic", 1)
    words = vocabulary(("attribute", "track"))
    first, second, third = (tmp_path / f"{name}.safetensors" for name in "abc")
    publish(recipe, checkpoint, Sources(), first)
    assert load_model("tiny", checkpoint=first).weights.training == Training((run,), words)
    with safe_open(first, "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118
    publish(recipe, checkpoint, Sources(checkpoint=first), second)
    assert load_model("tiny", checkpoint=second).weights.training == Training((run, run), words)
    save_source(tmp_path / "plain.safetensors", fresh_model(recipe))
    publish(recipe, checkpoint, Sources(checkpoint=tmp_path / "plain.safetensors"), third)
    assert load_model("tiny", checkpoint=third).weights.training == Training((run,))


def test_crowds_have_words_of_their_own(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, single_frame_share="0.4\ncrowd_share = 1.0")
    train(path, RunRequest(output=tmp_path / "run", show_progress=False, max_steps=1))
    target = tmp_path / "x.safetensors"
    publish(read_recipe(path), tmp_path / "run" / "checkpoint.safetensors", Sources(), target)
    training = load_model("tiny", checkpoint=target).weights.training
    assert training is not None
    assert training.vocabulary == vocabulary(("attribute", "size", "position", "track"))


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    train(path, RunRequest(output=tmp_path / "run", show_progress=False, max_steps=1))
    other = read_recipe(write_recipe(tmp_path, seed="4"))
    target = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match=r"with another recipe .* give the recipe of"):
        publish(other, tmp_path / "run" / "checkpoint.safetensors", Sources(), target)
    assert not target.exists()


def test_what_was_not_trained_comes_from_the_start(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    train(path, RunRequest(output=tmp_path / "run", show_progress=False, max_steps=1))
    recipe, target = read_recipe(path), tmp_path / "out.safetensors"
    publish(recipe, tmp_path / "run" / "checkpoint.safetensors", Sources(), target)
    tensors = canonical_tensors(load_model("tiny", checkpoint=target).model)
    start = canonical_tensors(fresh_model(recipe).model)
    name = "mask_decoder.iou_prediction_head.layers.0.weight"
    assert torch.equal(tensors[name], start[name].half().float())


def test_a_value_that_fp16_cannot_hold_is_refused(tmp_path: Path) -> None:
    loaded = fresh_model(read_tiny(tmp_path))
    canonical_tensors(loaded.model)["dense_conv.bias"].data[3] = 1e6
    with pytest.raises(CheckpointError, match=r"dense_conv\.bias: holds a value that fp16 cannot"):
        round_to_fp16(loaded)


def test_a_checkpoint_of_another_preset_is_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    train(path, RunRequest(output=tmp_path / "run", show_progress=False, max_steps=1))
    other = tmp_path / "other"
    other.mkdir()
    recipe = read_tiny(other, preset='"nano"')
    with pytest.raises(CheckpointError, match="does not fit preset nano"):
        publish(
            recipe,
            tmp_path / "run" / "checkpoint.safetensors",
            Sources(),
            tmp_path / "x.safetensors",
        )
    assert not (tmp_path / "x.safetensors").exists()
