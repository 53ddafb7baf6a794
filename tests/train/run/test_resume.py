"""A killed and resumed run gives, bit for bit, the weights of one that was never interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_training import write_recipe

from refsam_train.run import checkpoints
from refsam_train.run.checkpoints import read_weights
from refsam_train.run.train import RunRequest, train
from refsam_trt.command.ending import Terminated
from refsam_trt.errors import CheckpointError, UsageError


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _request(folder: Path, **options: object) -> RunRequest:
    return RunRequest(output=folder, show_progress=False, **options)  # type: ignore[arg-type]


def _same_tensors(first: Path, second: Path) -> bool:
    a, b = (safetensors.torch.load_file(f / "checkpoint.safetensors") for f in (first, second))
    assert any(key.startswith("average.") for key in a)
    assert any(key.endswith(".exp_avg_sq") for key in a)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _losses(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    # The means of a resumed run begin where it resumed.
    return [{key: json.loads(line)[key] for key in ("step", "norm")} for line in lines]


def test_killed_with_sigkill_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, steps="40", checkpoint_every="2", clips_per_batch="1", expressions_per_clip="1"
    )
    command = [sys.executable, "-m", "refsam_train.cli", str(recipe), "--output"]
    killed = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [*command, str(killed), "--threads", "1", "--json"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while not (killed / "checkpoint.safetensors").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    log = killed / "log.jsonl"
    log.write_text('{"step": 39, "loss": 1.0}\n{"step": 4', encoding="utf-8")

    summary = train(recipe, _request(killed, resume=True, max_steps=11))
    whole = tmp_path / "whole"
    train(recipe, _request(whole, max_steps=11))
    assert summary["step"] == 11
    assert _same_tensors(killed, whole)
    assert _losses(killed) == _losses(whole)
    assert [record["step"] for record in _losses(whole)] == [10]


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_lets_the_step_end_saves_and_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[BaseException]
) -> None:
    recipe = write_recipe(tmp_path, checkpoint_every="100")
    original = torch.optim.AdamW.step
    before = signal.getsignal(number)

    def interrupted(self: torch.optim.AdamW, *arguments: object) -> object:
        signal.raise_signal(number)
        return original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(error):
        train(recipe, _request(tmp_path / "signalled"))
    monkeypatch.undo()
    train(recipe, _request(tmp_path / "plain", max_steps=1))
    assert _same_tensors(tmp_path / "signalled", tmp_path / "plain")
    assert signal.getsignal(number) == before


def test_a_signal_to_the_whole_group_is_the_runs_business_alone(tmp_path: Path) -> None:
    """As Ctrl-C on a terminal and schedulers send it: the processes that make batches live on."""
    recipe = write_recipe(
        tmp_path, steps="400", checkpoint_every="2", clips_per_batch="1", expressions_per_clip="1"
    )
    out = tmp_path / "run"
    command = [sys.executable, "-m", "refsam_train.cli", str(recipe), "--output", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [*command, "--threads", "1", "--workers", "1", "--json"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    checkpoint = out / "checkpoint.safetensors"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors.decode()
    assert read_weights(checkpoint).step >= 2


def test_a_run_is_not_overwritten_without_resume(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    folder = tmp_path / "run"
    train(recipe, _request(folder, max_steps=1))
    with pytest.raises(UsageError, match=r"a run is here already; .*--resume"):
        train(recipe, _request(folder))


def test_resuming_with_another_recipe_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(write_recipe(tmp_path), _request(folder, max_steps=1))
    other = write_recipe(tmp_path, learning_rate="5e-4")
    with pytest.raises(CheckpointError, match=r"written by another recipe .*refsam-train publish"):
        train(other, _request(folder, resume=True))


def test_resuming_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint here; run without --resume"):
        train(write_recipe(tmp_path), _request(tmp_path / "run", resume=True))


def test_resuming_from_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    safetensors.torch.save_file({"x": torch.zeros(1)}, folder / "checkpoint.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint of a training run of this version"):
        train(write_recipe(tmp_path), _request(folder, resume=True))


def test_a_checkpoint_of_other_parameters_is_refused() -> None:
    state: Any = SimpleNamespace(parameters={"a": None, "b": None})
    tensors = {f"{checkpoints._MODEL}{name}": torch.zeros(1) for name in "ac"}
    with pytest.raises(CheckpointError) as told:
        checkpoints._check_names(Path("run/c"), tensors, state)
    assert str(told.value) == (
        "run/c: trains other parameters than this run, 2 differ: b, c; start anew without --resume"
    )
