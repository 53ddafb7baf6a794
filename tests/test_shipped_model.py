"""The model that ships: whole, small, proven, with its provenance."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from shipped_checks import check_record, check_runs_without_torch, check_weights

from refsam_prove.demo import weights
from refsam_prove.ship import RECORD_FILE, commands
from refsam_trt.bundle.shipped import MODELS, SHIPPED, bundle_folder

ROOT = Path(__file__).resolve().parents[1]
MAX_TRACKED_BYTES = 40_000_000


@pytest.fixture
def nano() -> Path:
    return bundle_folder("nano")


def test_it_is_the_one_of_the_record(nano: Path):
    check_record(nano, ROOT / "train" / "nano")


def test_fp16_holds_its_weights(nano: Path):
    check_weights(nano)


def test_it_runs_without_torch(nano: Path, tmp_path: Path):
    check_runs_without_torch(nano, tmp_path)


def test_the_demo_exports_it_afresh(nano: Path):
    source = str(nano / "source.safetensors")
    assert weights() == ("--checkpoint", source, "--weight-storage", "fp16")


def test_nothing_else_ships():
    names = {path.name for path in MODELS.iterdir() if not path.name.startswith(".")}
    assert names == set(SHIPPED)


def test_tracked_files_stay_small():
    git = ["git", "-C", str(ROOT), "ls-files", "-z"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a clone")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    assert sum(path.stat().st_size for path in paths if path.is_file()) < MAX_TRACKED_BYTES


def test_its_record_is_whole_and_its_commands_are_those_of_its_runs():
    record = ROOT / "train" / "nano"
    found = json.loads((record / RECORD_FILE).read_text())
    runs = found["runs"]
    assert found["commands"] == commands(runs, Path("train/nano"))
    files = {run[key] for run in runs for key in ("recipe", "log")}
    assert {path.name for path in record.iterdir()} == {RECORD_FILE, *files}
    for run in runs:
        lines = (record / run["log"]).read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == sorted(steps)
        assert run["num_steps"] - 10 < steps[-1] <= run["num_steps"], run["log"]


def test_the_page_about_training_tells_the_recorded_runs():
    record = json.loads((ROOT / "train" / "nano" / RECORD_FILE).read_text())
    page = (ROOT / "docs" / "reproduce" / "nano.md").read_text()
    first, second, *_, last = record["commands"]
    assert not [line for line in (first, second, last) if f"\n{line}\n" not in page]
    numbers = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    assert f"{numbers[len(record['runs']) - 1]} runs" in " ".join(page.split())
    assert not re.findall(r"%[A-Z]+%", page), "nothing is left to fill in"
