"""The model that ships: whole, small, proven, with its provenance."""

import subprocess
from pathlib import Path

import pytest
from shipped_checks import check_record, check_runs_without_torch, check_weights

from refsam_bench.demo import weights
from refsam_trt.shipped import MODELS, SHIPPED, bundle_folder

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
