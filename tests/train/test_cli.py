"""The command: JSON on standard output, exit codes, and refusals before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_training import write_recipe

from refsam_train.cli import cli
from refsam_trt.errors import DatasetError, UsageError
from refsam_trt.run.meta_expressions import load_meta_expressions


def _invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_training_and_publishing_print_one_json_object(tmp_path: Path) -> None:
    recipe, folder = write_recipe(tmp_path), tmp_path / "run"
    trained = _invoke(recipe, "--output", folder, "--max-steps", 1, "--json")
    assert trained.exit_code == 0, trained.output
    summary = json.loads(trained.stdout)
    assert (summary["recipe"], summary["step"]) == ("tiny", 1)
    weights = tmp_path / "weights.safetensors"
    published = _invoke("publish", recipe, summary["checkpoint"], "--output", weights, "--json")
    assert published.exit_code == 0, published.output
    assert json.loads(published.stdout)["step"] == 1
    again = _invoke(recipe, "--output", tmp_path / "next", "--weights", weights, "--max-steps", 1)
    assert again.exit_code == 0, again.output
    assert "1 steps of tiny" in again.stdout


def test_resume_continues(tmp_path: Path) -> None:
    recipe, folder = write_recipe(tmp_path, clips_per_batch="1"), tmp_path / "run"
    _invoke(recipe, "--output", folder, "--max-steps", 1)
    resumed = _invoke(recipe, "--output", folder, "--max-steps", 2, "--resume", "--json")
    assert json.loads(resumed.stdout)["step"] == 2


def test_synthetic_videos_are_written_as_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    result = _invoke(
        "synthetic",
        "--write",
        folder,
        "--slice",
        "size",
        "--seed",
        890001,
        "--num-videos",
        1,
        "--json",
    )
    assert result.exit_code == 0, result.output
    names = json.loads(result.stdout)["videos"]
    videos = load_meta_expressions(folder / "meta_expressions" / "valid" / "meta_expressions.json")
    assert list(videos) == names
    assert len(videos[names[0]].frames) == 16


def test_a_recipe_for_real_data_needs_its_folder(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "train" / "recipes" / "paper-finetune.toml"
    without = _invoke(recipe, "--output", tmp_path / "run")
    assert isinstance(without.exception, UsageError)
    assert "needs ref-youtube-vos: give its folder with --data" in str(without.exception)
    bad = _invoke(recipe, "--output", tmp_path / "run", "--data", tmp_path)
    assert isinstance(bad.exception, DatasetError)
    assert "meta_expressions.json" in str(bad.exception)
    assert not (tmp_path / "run").exists()


def test_a_synthetic_recipe_takes_no_folder(tmp_path: Path) -> None:
    result = _invoke(write_recipe(tmp_path), "--data", tmp_path)
    assert isinstance(result.exception, UsageError)
    assert "makes its own data: leave --data out" in str(result.exception)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["publish", "--help"]])
def test_help_works(arguments: list[str]) -> None:
    assert _invoke(*arguments).exit_code == 0
