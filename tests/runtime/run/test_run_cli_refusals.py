"""What `refsam-run` cannot use: exit code 2, one clear message, nothing left behind."""

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fake_bundle
import numpy as np
import pytest
from commands_in_process import Commands, Ended
from small_videos import moving_frames, write_images, write_video

from refsam_trt.bundle import shipped
from refsam_trt.errors import UsageError
from refsam_trt.run import outputs as run_outputs
from refsam_trt.run import runner
from refsam_trt.run.cli import main


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture
def place(bundle, tmp_path, monkeypatch, tmp_path_factory) -> Path:
    """A working folder with a bundle `b`, a clip, and things that look alike and are not."""
    monkeypatch.setattr(shipped, "MODELS", tmp_path_factory.mktemp("models"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle, "b")
    shutil.copytree(bundle, "altered")
    graph = next(Path("altered").rglob("decoder_step.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    write_video(tmp_path / "clip.mp4", moving_frames(4))
    whole = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no_images").mkdir()
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("ein grüner Hund".encode("latin-1"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("keep me")
    return tmp_path


@pytest.fixture
def run(monkeypatch, capfd):
    commands = Commands(monkeypatch, capfd)

    def call(*arguments: object) -> Ended:
        return commands(main, *arguments, "--threads", 1)

    return call


def names_in(folder: Path) -> list[str]:
    """Everything below a folder, hidden leftovers included."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


CLIP = ("b", "clip.mp4", "a dog")
REFUSED = {
    "no such bundle": (("nope", *CLIP[1:]), "nope: no such folder; give the folder of a bundle"),
    "the demo model": (
        ("nano", *CLIP[1:]),
        "nano: this installation of refsam-trt ships no such model; install a version that does, "
        "or make a bundle of random weights with "
        "`refsam-export --backbone nano --random-init 0 --output nano`",
    ),
    "a folder that is no bundle": (("mine", *CLIP[1:]), "mine: no manifest.json in this folder"),
    "wrong hash": (("altered", *CLIP[1:]), "decoder_step.onnx: SHA-256"),
    "no expression": (CLIP[:2], "no expression was given; say what to look for"),
    "an empty expression": ((*CLIP[:2], " "), "the expression is empty; say in words"),
    "an overlong expression": (
        (*CLIP[:2], "dog " * 40),
        "has 160 tokens, begin and end tokens included, at most 64 are accepted; shorten it",
    ),
    "no such video": (("b", "nope.mp4", "a dog"), "nope.mp4: no such file or folder"),
    "text as a video": (("b", "text.mp4", "a dog"), "text.mp4: cannot be decoded beyond 0 frames"),
    "an empty video": (("b", "empty.mp4", "a dog"), "empty.mp4: cannot be decoded beyond 0"),
    "a truncated video": (("b", "cut.mp4", "a dog"), "cut.mp4: cannot be decoded beyond"),
    "a folder without images": (("b", "no_images", "a dog"), "no_images: found no image"),
    "an unknown output": (
        (*CLIP, "--save", "masks,boxes"),
        "save: found 'boxes', expected some of masks, rle, overlay, json",
    ),
    "no output": ((*CLIP, "--save", ""), "save: found '', expected some of masks"),
    "a start past the end": (
        (*CLIP, "--start", "4"),
        "clip: the video ends before frame 4, so nothing was done; choose a smaller --start",
    ),
    "an end before the start": (
        (*CLIP, "--start", "3", "--end", "3"),
        "start 3, end 3: no frame lies between them",
    ),
    "a stride of 0": ((*CLIP, "--stride", "0"), "start 0, stride 0: expected a start of 0 or more"),
    "a threshold that is none": (
        (*CLIP, "--threshold", "nan"),
        "threshold nan: expected a finite logit",
    ),
    "no such backend": (
        (*CLIP, "--backend", "abacus"),
        "this version has no backend 'abacus'; it has: auto, ort-cpu",
    ),
    "no such variant": ((*CLIP, "--variant", "int4"), "the bundle has no variant 'int4'"),
    "no such list": (
        (*CLIP, "--expressions", "nope.txt"),
        "nope.txt: cannot be read as expressions (No such file or directory)",
    ),
    "a list of nothing": ((*CLIP, "--expressions", "empty.txt"), "empty.txt: found no expression"),
    "a list in another encoding": (
        (*CLIP, "--expressions", "latin.txt"),
        "latin.txt: cannot be read as expressions (not text in UTF-8)",
    ),
    "an unknown kind of address": (
        ("b", "ftp://me:secret@example.org/clip.mp4", "a dog"),
        "ftp://example.org/clip.mp4: found an address of kind ftp, expected a path or one of "
        "rtsp://, rtsps://, http://, https://",
    ),
    "no such camera": (("b", "camera:87", "a dog"), "camera:87: cannot be opened ("),
    "an address that does not answer": (
        ("b", "rtsp://me:secret@127.0.0.1:9/live?key=secret", "a dog"),
        "rtsp://127.0.0.1:9/live: cannot be opened (Connection refused); check the name and that",
    ),
    "frames of a file cannot be late": (
        (*CLIP, "--drop-late"),
        "--drop-late: clip is no live source, so its frames wait; leave it out",
    ),
    "cached expressions only": (
        (*CLIP, "--text", "cache-only"),
        "expression 'a dog' is not among the 0 cached in the bundle",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_unusable_input_ends_with_one_message_and_nothing_written(run, place, what):
    arguments, message = REFUSED[what]
    before = names_in(place)
    ended = run(*arguments, "--output", "out")
    assert ended.code == 2
    assert ended.out == ""
    assert ended.message.startswith("refsam-run: ")
    assert message in ended.message
    assert "secret" not in ended.err
    assert "Traceback" not in ended.err
    assert names_in(place) == before


@pytest.mark.parametrize("what", ["an empty expression", "an overlong expression"])
def test_expressions_are_refused_before_graphs_are_loaded(run, place, monkeypatch, what):
    loaded = []
    monkeypatch.setattr(runner, "load", lambda *_, **__: loaded.append(1))
    arguments, message = REFUSED[what]
    assert message in run(*arguments, "--output", "out").message
    assert not loaded


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("mine", (), "mine: exists already; choose another name, or ask to replace"),
        ("mine", ("--overwrite",), "mine: holds no run.json, so it is not overwritten; choose"),
        ("clip.mp4", ("--overwrite",), "clip.mp4: found a file or a link, expected a folder"),
        ("no/out", (), "no/out: the folder no does not exist; create it first"),
    ],
)
def test_what_is_in_the_way_is_kept(run, place, output, options, message):
    before = names_in(place)
    ended = run(*CLIP, "--output", output, *options)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.message
    assert names_in(place) == before


@pytest.mark.parametrize("has_old_output", [False, True])
def test_frames_that_change_size_leave_nothing_new(run, place, has_old_output):
    write_images(place / "images", moving_frames(3))
    shutil.copy(
        write_images(place / "wide", moving_frames(1, (32, 50)), first=3) / "00003.png", "images"
    )
    if has_old_output:
        assert run("b", "clip.mp4", "an old cat", "--output", "out").code == 0
    before = names_in(place)
    ended = run("b", "images", "a dog", "--output", "out", "--overwrite")
    assert ended.code == 2
    assert "images/00003.png: found 32 x 50 pixels, expected 32 x 48 as in the first" in ended.err
    assert names_in(place) == before
    assert not has_old_output or "an old cat" in (place / "out/run.json").read_text()


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size: writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("save", "target", "num_bytes"),
    [
        ("overlay", "out/overlay.mp4", 8000),
        ("rle", "out/rle.json", 8000),
        ("json", "out/results.jsonl", 8000),
        ("masks", "out/masks", 300),
    ],
)
def test_a_full_disk_leaves_nothing(run, place, save, target, num_bytes):
    rng = np.random.default_rng(0)
    write_images(place / "images", [rng.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(20)])
    texts = [f"dog {number}" for number in range(12)]
    before = names_in(place)
    with largest_file(num_bytes):
        ended = run("b", "images", *texts, "--output", "out", "--save", save)
    assert ended.code == 2
    # The place that the user named, not the hidden one where the folder grows.
    reason = os.strerror(errno.EFBIG)
    assert f"{target}: cannot be written ({reason}); free some space" in ended.message
    assert names_in(place) == before


def test_more_expressions_than_labels_are_refused_before_anything_runs():
    run_outputs.check_outputs(("rle", "json"), 256)
    run_outputs.check_outputs(("masks", "overlay"), 255)
    for name in ("masks", "overlay"):
        with pytest.raises(UsageError, match="found 256 expressions, expected at most 255 for"):
            run_outputs.check_outputs((name, "rle"), 256)
