"""`make demo`: its commands, on the clip it made, and the animation; commands are stubs."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from refsam_prove import demo


def test_it_exports_the_shipped_weights_and_runs_them_on_its_clip(monkeypatch, tmp_path: Path):
    said = []

    def command(*words: str) -> None:
        said.append(words)
        if words[0] == "refsam-run":
            output = Path(words[-1])
            output.mkdir()
            shutil.copy(words[2], output / "overlay.mp4")

    for name, value in {
        "_command": command,
        "weights": lambda: ("--checkpoint", "its weights"),
        "NUM_FRAMES": 3,
        "FRAME_HW": (64, 64),
        "ANIMATION_PX": 32,
    }.items():
        monkeypatch.setattr(demo, name, value)
    target = tmp_path / "demo"
    target.mkdir()
    (target / "old").touch()
    demo.main(target)
    export, run = said
    bundle, clip, output = (str(target / name) for name in ("nano", "clip.mp4", "output"))
    assert export == (
        *("refsam-export", "--backbone", "nano", "--checkpoint", "its weights"),
        *("--precision", "fp32,fp16", "--output", bundle),
    )
    assert (run[:3], run[-2:]) == (("refsam-run", bundle, clip), ("--output", output))
    assert len(set(run[3:-2])) == 2
    with Image.open(target / "demo.webp") as animation:
        assert (animation.size, animation.n_frames) == ((32, 32), 2)
    assert not (target / "old").exists()


def test_a_command_that_fails_ends_it(monkeypatch):
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=2))
    with pytest.raises(SystemExit) as ended:
        demo._command("refsam-run")
    assert ended.value.code == 1
