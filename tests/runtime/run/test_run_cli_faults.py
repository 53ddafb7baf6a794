"""Whatever breaks in whichever stage: no hang, no thread left, one message, nothing written."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_bundle
import pytest
from commands_in_process import Commands, Ended
from small_videos import moving_frames, write_images

from refsam_trt.errors import BackendError
from refsam_trt.families.refsam.family import RefsamEncoder, RefsamTrack
from refsam_trt.image.postprocess import Postprocessor
from refsam_trt.image.preprocess import Preprocessor
from refsam_trt.media import frames as frames_module
from refsam_trt.result.writers import OverlayVideoWriter, PalettePngWriter
from refsam_trt.run.cli import main

NUM_FRAMES, BREAKS_AT = 30, 12
STAGES: dict[str, tuple[Any, str]] = {
    "decode": (frames_module, "_image"),
    "preprocess": (Preprocessor, "__call__"),
    "encode": (RefsamEncoder, "encode"),
    "step": (RefsamTrack, "decode"),
    "postprocess": (Postprocessor, "logits"),
    "write masks": (PalettePngWriter, "write"),
    "write overlay": (OverlayVideoWriter, "write"),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "images", moving_frames(NUM_FRAMES))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    commands = Commands(monkeypatch, capfd)
    return lambda *arguments: commands(main, *arguments, "--threads", 1)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def broken(monkeypatch: pytest.MonkeyPatch, stage: str, error: Exception) -> None:
    """Let a stage raise at its call number `BREAKS_AT`."""
    owner, name = STAGES[stage]
    works, calls = getattr(owner, name), iter(range(10_000))

    def breaking(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == BREAKS_AT:
            raise error
        return works(*args, **kwargs)

    monkeypatch.setattr(owner, name, breaking)


@pytest.mark.parametrize("stage", STAGES)
def test_an_error_of_any_stage_ends_the_run(run, monkeypatch, bundle, images, tmp_path, stage):
    broken(monkeypatch, stage, BackendError(f"broken: {stage}"))
    ended = run(bundle, images, "a dog", "--output", tmp_path / "out")
    assert ended.code == 2
    assert ended.message == f"refsam-run: broken: {stage}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", STAGES)
def test_a_bug_of_any_stage_is_not_taken_for_the_users_fault(
    run, monkeypatch, bundle, images, tmp_path, stage
):
    broken(monkeypatch, stage, ZeroDivisionError(f"bug: {stage}"))
    with pytest.raises(ZeroDivisionError, match=f"bug: {stage}"):
        run(bundle, images, "a dog", "--output", tmp_path / "out")
    assert not list(tmp_path.iterdir())
