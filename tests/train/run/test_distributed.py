"""Two processes of the launcher do what one with twice the clips does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_training import write_recipe

from refsam_train.run.distributed import launched_place, wrapped
from refsam_train.run.train import RunRequest, train


def test_without_the_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    module = torch.nn.Linear(2, 2)
    with launched_place() as place:
        assert (place.rank, place.world_size) == (0, 1)
        assert wrapped(module, place) is module


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_clips(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, single_frame_share="0.0", learning_rate="1e-2")
    folder = tmp_path / "two"
    arguments = [
        str(recipe),
        "--output",
        str(folder),
        "--max-steps",
        "2",
        "--threads",
        "1",
        "--json",
    ]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(
        [sys.executable, *launch, "-m", "refsam_train.cli", *arguments],
        env=environment,
        check=True,
        capture_output=True,
    )
    other = tmp_path / "other"
    other.mkdir()
    whole = write_recipe(other, single_frame_share="0.0", learning_rate="1e-2", clips_per_batch="4")
    train(whole, RunRequest(output=tmp_path / "one", max_steps=2, threads=1, show_progress=False))
    two, one = (
        safetensors.torch.load_file(tmp_path / name / "checkpoint.safetensors")
        for name in ("two", "one")
    )
    for name, value in one.items():
        if name.startswith("optimiser.") and name.endswith("exp_avg"):
            # Sums in another order: the gradients agree to float32 rounding.
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-6)
