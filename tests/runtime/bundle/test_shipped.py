"""Models that ship: what their names open, and what a name cannot mean."""

import shutil
from pathlib import Path

import fake_bundle
import pytest
from commands_in_process import Commands
from small_videos import moving_frames, write_images

import refsam_bench.cli
import refsam_trt
from refsam_trt.bundle import shipped
from refsam_trt.bundle.folder import HASH_FILE
from refsam_trt.contract.manifest import Weights
from refsam_trt.errors import BundleError, UsageError
from refsam_trt.run import cli


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = Weights(sources=())
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("bundle") / "b", weights=weights)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where models ship, empty; the working folder is another one."""
    (tmp_path / "models").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(shipped, "MODELS", tmp_path / "models")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "models"


def id_of(folder: Path) -> str:
    return (folder / HASH_FILE).read_text().strip()


def test_a_name_opens_the_shipped_bundle(models: Path, bundle: Path) -> None:
    shutil.copytree(bundle, models / "nano")
    with refsam_trt.load("nano") as engine:
        assert engine.bundle_id == id_of(bundle)
    assert shipped.shipped_folder("nano") == models / "nano"


def test_commands_take_the_name(
    models: Path,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(bundle, models / "nano")
    write_images(Path("images"), moving_frames(2))
    call = Commands(monkeypatch, capfd)
    done = call(cli.main, "nano", "images", "the red circle", "--output", "out")
    assert done.code == 0, done.err
    speed = ("--frames", 2, "--warmup", 1, "--frame-size", 32, 48, "--threads", 1)
    done = call(refsam_bench.cli.main, "speed", "nano", *speed, "--json", "--no-reference")
    assert done.code == 0, done.err
    assert id_of(bundle) in done.out


def test_without_a_shipped_bundle_the_name_is_refused(models: Path) -> None:
    with pytest.raises(BundleError, match="nano: this installation of refsam-trt ships no such"):
        refsam_trt.load("nano")
    assert shipped.shipped_folder("nano") is None


def test_a_folder_of_that_name_is_one_where_nothing_ships(models: Path, bundle: Path) -> None:
    shutil.copytree(bundle, "nano")
    with refsam_trt.load("nano") as engine:
        assert engine.bundle_id == id_of(bundle)


def test_two_bundles_of_one_name_are_told_apart_by_their_paths(models: Path, bundle: Path) -> None:
    shutil.copytree(bundle, models / "nano")
    fake_bundle.make_bundle(Path("nano"), split="optimised")
    with pytest.raises(UsageError, match=r"write \./nano for the one here, or .*models/nano for"):
        refsam_trt.load("nano")
    for path in ("./nano", Path("nano")):
        with refsam_trt.load(path) as engine:
            assert engine.variant == "fp32-plain-optimised"
    with refsam_trt.load(models / "nano") as engine:
        assert engine.variant == "fp32-plain-baseline"


def test_a_folder_that_is_no_bundle_does_not_count(models: Path, bundle: Path) -> None:
    shutil.copytree(bundle, models / "nano")
    Path("nano").mkdir()
    assert shipped.bundle_folder("nano") == models / "nano"


@pytest.mark.parametrize("name", ["tiny", "../models/nano", "NANO"])
def test_other_names_are_paths(models: Path, bundle: Path, name: str) -> None:
    shutil.copytree(bundle, models / "nano")
    shutil.copytree(bundle, models / "tiny")
    assert shipped.bundle_folder(name) == Path(name)
    assert shipped.shipped_folder(name) is None
