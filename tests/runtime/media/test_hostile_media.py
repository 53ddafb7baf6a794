"""Videos that are not what they announce, and images that Pillow stumbles over: refused by us."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
import small_videos
from PIL import Image

from refsam_trt.errors import VideoError
from refsam_trt.media.frames import open_frames
from refsam_trt.media.sources import open_source


def video_of(path: Path, hw: tuple[int, int], num_frames: int) -> bytes:
    frames = [np.full((*hw, 3), 40, np.uint8)] * num_frames
    return small_videos.write_video(path, frames).read_bytes()


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    """A video that begins with 16 x 16 pixels, as announced, and goes on with 128 x 128."""
    small = video_of(tmp_path / "small.ts", (16, 16), 12)
    large = video_of(tmp_path / "large.ts", (128, 128), 2)
    path = tmp_path / "growing.ts"
    path.write_bytes(small + large)
    return path


@pytest.mark.parametrize(
    ("max_pixels", "problem"),
    [
        # Decoded and then refused; beyond the limit it is not even decoded.
        (128 * 128, "frame 12: found 128 x 128 pixels, expected 16 x 16 as in the first frame"),
        (127 * 128, r"cannot be decoded beyond 1[12] frames \(Invalid data"),
    ],
)
def test_pictures_larger_than_announced_are_bounded(growing: Path, max_pixels: int, problem: str):
    with pytest.raises(VideoError, match=problem):
        list(open_frames(growing, max_pixels))


def test_a_stream_is_bounded_like_a_file(growing: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("refsam_trt.media.sources.MAX_FRAME_PIXELS", 127 * 128)
    monkeypatch.setattr("refsam_trt.media.sources._NETWORK_OPTIONS", {})
    monkeypatch.setattr("refsam_trt.media.sources._PROTOCOLS", ("file",))
    with (
        open_source(f"file://{growing}") as stream,
        pytest.raises(VideoError, match=r"lost after 1[12] frames \(Invalid data"),
    ):
        list(stream)


def test_video_in_an_unknown_coding_is_refused(tmp_path: Path):
    path = tmp_path / "clip.mp4"
    content = video_of(path, (16, 16), 2)
    path.write_bytes(content.replace(b"avc1", b"zzzz"))
    with pytest.raises(VideoError, match="in a coding that FFmpeg cannot decode") as caught:
        open_frames(path)
    assert str(caught.value).endswith("re-encode it as H.264")


def test_titles_that_are_not_utf8_do_no_harm(tmp_path: Path):
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "cafe"
        stream = container.add_stream("mjpeg", rate=5)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuvj420p"
        container.mux(stream.encode(av.VideoFrame(16, 16, "yuvj420p")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    assert b"cafe" in content
    path.write_bytes(content.replace(b"cafe", b"caf\xe9"))
    with open_frames(path) as frames:
        assert len(list(frames)) == 1


def test_a_turn_that_stands_behind_the_pixels_is_seen(tmp_path: Path):
    path = tmp_path / "photo.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(path, exif=exif)
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(content[start : start + 4], "big")
    end = content.index(b"IEND") - 4
    assert stop <= content.index(b"IDAT")
    path.write_bytes(content[:start] + content[stop:end] + content[start:stop] + content[end:])
    with open_frames(path) as frames:
        assert frames.original_hw == (8, 4)


def test_whatever_pillow_raises_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stumble(image: Image.Image) -> None:
        raise struct.error("unpack requires a buffer of 4 bytes")

    path = tmp_path / "photo.png"
    Image.new("RGB", (8, 4)).save(path)
    monkeypatch.setattr(Image.Image, "getexif", stumble)
    with pytest.raises(VideoError, match=r"not a readable image .unpack requires a buffer"):
        open_frames(path)
