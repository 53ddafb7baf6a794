"""Results on disk: read back, reproducible, and absent after an error."""

import contextlib
import errno
import json
import os
import shutil
import sys
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import shared_data
from PIL import Image

from refsam_trt.errors import MissingExtraError, OutputError, UsageError
from refsam_trt.media.frames import open_frames
from refsam_trt.result import writers
from refsam_trt.result.overlay import PALETTE
from refsam_trt.result.rle import mask_from_rle
from refsam_trt.result.writers import OverlayVideoWriter, PalettePngWriter, RleWriter


def enter(context):
    """Enter a context whose block must not be reached."""
    with context:
        pytest.fail("the block must not run")


def moving_frames(hw, count):
    """Smooth frames that change, as an encoder likes them."""
    y, x = np.mgrid[: hw[0], : hw[1]]
    for index in range(count):
        planes = [x + 3 * index, y, (x + y) // 2 + index]
        yield np.stack([np.clip(plane, 0, 255) for plane in planes], axis=2).astype(np.uint8)


def label_maps(count):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 5, (20, 30), dtype=np.uint8) for _ in range(count)]


def test_label_maps_become_palette_pngs(tmp_path):
    maps = label_maps(3)
    with PalettePngWriter(tmp_path / "dog") as writer:
        for index, label_map in enumerate(maps):
            writer.write(f"{index:05d}", label_map)
        assert not (tmp_path / "dog").exists()
    assert sorted(p.name for p in (tmp_path / "dog").iterdir()) == [
        f"0000{i}.png" for i in range(3)
    ]
    for index, label_map in enumerate(maps):
        with Image.open(tmp_path / "dog" / f"{index:05d}.png") as image:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.array(image), label_map)
            np.testing.assert_array_equal(np.array(image.getpalette()).reshape(-1, 3), PALETTE)


def test_an_existing_folder_of_pngs_is_kept_unless_told(tmp_path):
    (tmp_path / "dog").mkdir()
    with (
        pytest.raises(OutputError, match="dog: exists already"),
        PalettePngWriter(tmp_path / "dog"),
    ):
        pytest.fail("the block must not run")
    with PalettePngWriter(tmp_path / "dog", overwrite=True) as writer:
        writer.write("00000", label_maps(1)[0])
    assert [p.name for p in (tmp_path / "dog").iterdir()] == ["00000.png"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "../00000", "/00000", "00000"])
def test_frame_names_neither_repeat_nor_leave_the_folder(tmp_path, name):
    with PalettePngWriter(tmp_path / "dog") as writer:
        writer.write("00000", label_maps(1)[0])
        with pytest.raises(UsageError, match="expected a new one without folders"):
            writer.write(name, label_maps(1)[0])
    assert [p.name for p in (tmp_path / "dog").iterdir()] == ["00000.png"]


def test_other_label_maps_are_refused(tmp_path):
    with PalettePngWriter(tmp_path / "dog") as writer:
        for bad in (
            np.zeros((2, 2), bool),
            np.zeros((1, 2, 2), np.uint8),
            np.zeros((0, 2), np.uint8),
        ):
            with pytest.raises(UsageError, match=r"expected uint8 \[H, W\]"):
                writer.write("00000", bad)


def masks_of(label_map):
    return [label_map == 1, label_map == 2]


def test_masks_become_one_json(tmp_path):
    maps = label_maps(3)
    with RleWriter(tmp_path / "dog.json", "dog", (20, 30), ["the dog", 'ein "Hündchen"']) as writer:
        for index, label_map in enumerate(maps):
            writer.write(f"{index:05d}", masks_of(label_map))
        assert not (tmp_path / "dog.json").exists()
    written = json.loads((tmp_path / "dog.json").read_text(encoding="utf-8"))
    assert list(written) == ["video", "size", "expressions", "frames"]
    assert written["video"] == "dog"
    assert written["size"] == [20, 30]
    assert written["expressions"] == ["the dog", 'ein "Hündchen"']
    assert list(written["frames"]) == ["00000", "00001", "00002"]
    for rles, label_map in zip(written["frames"].values(), maps, strict=True):
        for rle, mask in zip(rles, masks_of(label_map), strict=True):
            np.testing.assert_array_equal(mask_from_rle(rle), mask)


def test_a_json_of_no_frames_is_valid(tmp_path):
    with RleWriter(tmp_path / "dog.json", "dog", (20, 30), []):
        pass
    assert json.loads((tmp_path / "dog.json").read_text())["frames"] == {}


def test_other_masks_are_refused(tmp_path):
    masks = masks_of(label_maps(1)[0])
    with RleWriter(tmp_path / "dog.json", "dog", (20, 30), ["a", "b"]) as writer:
        with pytest.raises(UsageError, match=r"found 1 masks of \[\(20, 30\)\], expected 2"):
            writer.write("00000", masks[:1])
        with pytest.raises(UsageError, match=r"found 2 masks of \[\(20, 30\), \(30, 20\)\]"):
            writer.write("00000", [masks[0], masks[1].T])
        writer.write("00000", masks)
        with pytest.raises(UsageError, match="frame name '00000'"):
            writer.write("00000", masks)


def write_video(path, hw, count=6, fps=25.0):
    with OverlayVideoWriter(path, fps, hw) as writer:
        for frame in moving_frames(hw, count):
            writer.write(frame)


@pytest.mark.parametrize("hw", [(48, 64), (47, 63), (1, 1), (64, 1)])
def test_a_video_is_read_back_odd_sizes_made_even(tmp_path, hw):
    write_video(tmp_path / "out.mp4", hw)
    even = hw[0] + hw[0] % 2, hw[1] + hw[1] % 2
    with open_frames(tmp_path / "out.mp4") as source:
        assert source.original_hw == even
        assert source.num_frames == 6
        assert source.fps == 25.0
        for decoded, frame in zip(source, moving_frames(hw, 6), strict=True):
            # lossy coding and half-resolution colour, but the right frame and the right colours
            assert np.abs(decoded[: hw[0], : hw[1]].astype(int) - frame).mean() < 6


def test_frame_rates_are_kept_exactly(tmp_path):
    av = pytest.importorskip("av")
    write_video(tmp_path / "out.mp4", (32, 32), fps=30000 / 1001)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)


def test_colours_are_right_and_declared(tmp_path):
    av = pytest.importorskip("av")
    with OverlayVideoWriter(tmp_path / "out.mp4", 10, (64, 64)) as writer:
        writer.write(np.full((64, 64, 3), (230, 30, 40), np.uint8))
    (frame,) = open_frames(tmp_path / "out.mp4")
    assert np.abs(frame[32, 32].astype(int) - (230, 30, 40)).max() <= 4
    with av.open(str(tmp_path / "out.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_primaries, codec.color_trc) == (1, 1, 1)


def test_the_same_frames_give_the_same_bytes(tmp_path):
    clip = shared_data.path("clips", "bedroom.mp4")
    with open_frames(clip) as source:
        frames = [frame for _, frame in zip(range(8), source, strict=False)]
    contents = set()
    for attempt in range(8):
        path = tmp_path / f"{attempt}.mp4"
        with OverlayVideoWriter(path, 30, frames[0].shape[:2]) as writer:
            for frame in frames:
                writer.write(frame)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    # Other bytes are rare even with what causes them, so that this alone would not notice.
    settings = contents.pop()
    assert b" mbtree=0 " in settings
    assert b" threads=4 " in settings


@pytest.mark.parametrize("fps", [0, -1.0, float("nan"), float("inf"), 1001])
def test_other_frame_rates_are_refused(tmp_path, fps):
    with pytest.raises(UsageError, match="frames per second, expected 0 to 1000"):
        OverlayVideoWriter(tmp_path / "out.mp4", fps, (32, 32))


def test_other_frames_and_no_frames_are_refused(tmp_path):
    empty = pytest.raises(UsageError, match="no frame was written, expected at least one")
    with empty, OverlayVideoWriter(tmp_path / "out.mp4", 25, (32, 32)) as writer:
        for bad in (np.zeros((32, 34, 3), np.uint8), np.zeros((32, 32, 3), np.float32)):
            with pytest.raises(UsageError, match=r"expected uint8 \(32, 32, 3\)"):
                writer.write(bad)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_video_extra_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r'pip install "refsam-trt\[video\]"'):
        enter(OverlayVideoWriter(tmp_path / "out.mp4", 25, (32, 32)))
    assert list(tmp_path.iterdir()) == []


WRITERS = [
    lambda path: PalettePngWriter(path),
    lambda path: RleWriter(path, "dog", (20, 30), ["the dog"]),
    lambda path: OverlayVideoWriter(path, 25, (20, 30)),
]


def write_something(writer):
    label_map = label_maps(1)[0]
    if isinstance(writer, PalettePngWriter):
        writer.write("00000", label_map)
    elif isinstance(writer, RleWriter):
        writer.write("00000", [label_map == 1])
    else:
        for frame in moving_frames((20, 30), 60):
            writer.write(frame)


def write_and_raise(writer, error):
    with writer:
        write_something(writer)
        raise error


@pytest.mark.parametrize("make", WRITERS)
@pytest.mark.parametrize("interrupt", [ValueError("bad"), KeyboardInterrupt()], ids=repr)
def test_an_interrupt_leaves_nothing(tmp_path, make, interrupt):
    with pytest.raises(type(interrupt)):
        write_and_raise(make(tmp_path / "target"), interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", WRITERS)
def test_a_full_disk_is_an_output_error(tmp_path, make):
    with pytest.raises(OutputError, match=r"target: cannot be written \(No space left"):
        write_and_raise(make(tmp_path / "target"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def files_limited_to(num_bytes):
    """Let no file grow beyond a size: the nearest to a full disk that needs no rights."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_often(writer, item):
    """Write until a video encoder, which holds frames back, has to write too."""
    writer.write(*item)
    while isinstance(writer, OverlayVideoWriter):
        writer.write(*item)


@pytest.mark.parametrize("make", ["png", "json", "mp4"])
def test_a_disk_that_fills_while_writing_is_an_output_error(tmp_path, make):
    hw = (400, 500)
    noise = np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8)
    writer, item = {
        "png": (PalettePngWriter(tmp_path / "target"), ("00000", noise[..., 0])),
        "json": (RleWriter(tmp_path / "target", "", hw, ["a"]), ("00000", [noise[..., 0] > 127])),
        "mp4": (OverlayVideoWriter(tmp_path / "target", 25, hw), (noise,)),
    }[make]
    full = pytest.raises(OutputError, match=r"target: cannot be written \(File too large\)")
    with files_limited_to(50_000), full, writer:
        write_often(writer, item)
    assert list(tmp_path.iterdir()) == []


def remove_and_write(folder, writer):
    with writer:
        shutil.rmtree(folder)
        write_often(writer, (np.zeros((20, 30, 3), np.uint8),))


def test_a_folder_that_goes_away_under_a_video_is_an_output_error(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OutputError, match=r"target: cannot be written \(No such file"):
        remove_and_write(folder, OverlayVideoWriter(folder / "target", 25, (20, 30)))


@pytest.mark.parametrize("make", WRITERS)
def test_a_missing_folder_is_refused_at_the_door(tmp_path, make):
    with pytest.raises(OutputError, match="missing does not exist; create it first"):
        enter(make(tmp_path / "missing" / "target"))


def test_a_pyav_without_an_encoder_is_told(tmp_path, monkeypatch):
    def add_stream(*_, **__):
        raise ValueError("libx264")

    container = SimpleNamespace(add_stream=add_stream, close=lambda: None)
    module = SimpleNamespace(open=lambda *_, **__: container, FFmpegError=OSError)
    monkeypatch.setattr(writers, "import_av", lambda needed_for: module)
    with pytest.raises(OutputError, match=r"out\.mp4: this PyAV has no H\.264 encoder \("):
        enter(OverlayVideoWriter(tmp_path / "out.mp4", 25, (32, 32)))
