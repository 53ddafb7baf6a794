"""Frames from videos, folders and images, and everything that is refused."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import shared_data
import small_videos
from PIL import Image

from refsam_trt.errors import MissingExtraError, VideoError
from refsam_trt.media.frames import open_frames
from refsam_trt.result.writers import OverlayVideoWriter

OPEN_FILES = Path("/proc/self/fd")


def picture(hw=(24, 40), seed=0):
    """A picture whose four corners differ, smooth enough for lossy formats."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (2, 3, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize(hw[::-1], Image.Resampling.BILINEAR))


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def folder_of(tmp_path, names, hw=(24, 40)):
    folder = tmp_path / "frames"
    folder.mkdir()
    for seed, name in enumerate(names):
        save(folder / name, picture(hw, seed))
    return folder


def video(path, hw=(48, 64), count=12):
    with OverlayVideoWriter(path, 25, hw) as writer:
        for seed in range(count):
            writer.write(picture(hw, seed))
    return path


def refusal(path, **options):
    with pytest.raises(VideoError) as error, open_frames(path, **options) as source:
        list(source)
    text = str(error.value)
    assert str(path) in text
    return text


def test_a_folder_is_read_in_natural_order(tmp_path):
    folder = folder_of(tmp_path, ["f10.png", "f2.png", "f1.png", "F3.PNG", "a.bmp"])
    (folder / "notes.txt").write_text("not an image")
    (folder / "._f1.png").write_bytes(b"not an image either")
    (folder / "sub.png").mkdir()
    with open_frames(folder) as source:
        assert (source.name, source.original_hw) == ("frames", (24, 40))
        assert (source.num_frames, source.fps) == (5, None)
        assert [source.frame_name(i) for i in range(5)] == ["F3", "a", "f1", "f2", "f10"]
        for _ in range(2):  # iterations begin anew
            for frame, seed in zip(source, [3, 4, 2, 1, 0], strict=True):
                assert frame.dtype == np.uint8
                np.testing.assert_array_equal(frame, picture(seed=seed))
                frame[:] = 0  # frames are the caller's


def test_real_frames_equal_pillow():
    folder = shared_data.path("ref-davis-mini", "valid", "JPEGImages", "dogs-jump")
    with open_frames(str(folder)) as source:
        assert (source.name, source.original_hw, source.num_frames) == ("dogs-jump", (240, 432), 66)
        assert source.frame_name(65) == "00065"
        frame = next(iter(source))
    with Image.open(folder / "00000.jpg") as image:
        np.testing.assert_array_equal(frame, np.array(image))


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "bmp", "webp", "JPG"])
def test_one_image_is_a_video_of_one_frame(tmp_path, suffix):
    path = save(tmp_path / f"photo.{suffix}", picture())
    with open_frames(path) as source:
        assert (source.name, source.frame_name(0)) == ("photo", "photo")
        assert (source.num_frames, source.fps) == (1, None)
        (frame,) = source
    assert np.abs(frame.astype(int) - picture()).mean() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = picture()
    stored = {  # what the camera wrote, from what a viewer sees
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    path = save(tmp_path / "photo.png", np.ascontiguousarray(stored), exif=exif)
    (frame,) = open_frames(path)
    np.testing.assert_array_equal(frame, upright, strict=True)


def test_other_pixel_modes_become_rgb(tmp_path):
    grey = picture()[..., 0]
    rgba = np.dstack([picture(), np.zeros((24, 40), np.uint8)])
    palette = Image.fromarray(picture()).quantize(16)
    opaque = np.array(palette.convert("RGB"))
    palette.info["transparency"] = bytes(16)
    cases = {
        "grey": (Image.fromarray(grey), np.dstack([grey] * 3)),
        "bits": (Image.fromarray(grey > 99), np.dstack([(grey > 99) * np.uint8(255)] * 3)),
        "rgba": (Image.fromarray(rgba), picture()),  # transparency is dropped, not blended
        "grey_alpha": (Image.fromarray(grey).convert("LA"), np.dstack([grey] * 3)),
        "palette": (palette, opaque),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / f"{name}.png")
        (frame,) = open_frames(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(frame, expected, strict=True, err_msg=name)
    Image.fromarray(picture()).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    (frame,) = open_frames(tmp_path / "cmyk.jpg")
    assert np.abs(frame.astype(int) - picture()).mean() < 5


def test_sixteen_bits_and_animations_are_refused(tmp_path):
    save(tmp_path / "deep.png", picture()[..., 0].astype(np.uint16) * 256)
    assert "found pixel mode I" in refusal(tmp_path / "deep.png")
    second = [Image.fromarray(picture(seed=1))]
    for name in ("moving.png", "moving.webp"):
        save(tmp_path / name, picture(), save_all=True, append_images=second)
        assert "found an animation, expected one picture" in refusal(tmp_path / name)


def test_missing_and_empty_sources_are_refused(tmp_path):
    assert "no such file or folder; check the path" in refusal(tmp_path / "nothing.mp4")
    (tmp_path / "notes.txt").write_text("x")
    assert "found no image, expected .jpg .jpeg .png .bmp .webp files" in refusal(tmp_path)
    for name in ("empty.png", "empty.mp4"):
        (tmp_path / name).touch()
        refusal(tmp_path / name)


def test_two_images_of_one_stem_are_refused(tmp_path):
    folder = folder_of(tmp_path, ["1.jpg", "2.jpg", "1.png"])
    assert "found 1.jpg and 1.png, whose results would have the same name" in refusal(folder)


def test_frames_that_change_size_are_refused(tmp_path):
    folder = folder_of(tmp_path, ["1.png", "2.png"])
    save(folder / "3.png", picture((40, 24)))
    with open_frames(folder) as source, pytest.raises(VideoError) as error:
        list(source)
    assert str(error.value).startswith(
        f"{folder / '3.png'}: found 40 x 24 pixels, expected 24 x 40 as in the first frame"
    )


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp"])
def test_truncated_and_foreign_images_are_refused(tmp_path, suffix):
    data = save(tmp_path / f"whole.{suffix}", picture((200, 300))).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    for length in (len(data) // 2, 10):
        path.write_bytes(data[:length])
        assert "not a readable image" in refusal(path)
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "GIF")
    path.write_bytes(buffer.getvalue())
    assert "of another format: convert it to PNG" in refusal(path)


def png_that_claims(width, height):
    """A PNG of some hundred bytes that would unpack to width x height pixels."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize("side", [8001, 10_000, 30_000])
def test_decompression_bombs_are_refused_by_their_header(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_claims(side, side))
    assert "expected at most 64,000,000" in refusal(path)


def test_the_limit_of_pixels_can_be_set(tmp_path):
    path = save(tmp_path / "photo.png", picture((24, 40)))
    assert "found 24 x 40 pixels, expected at most 959 pixels" in refusal(path, max_pixels=959)
    assert len(list(open_frames(path, max_pixels=960))) == 1
    clip = video(tmp_path / "clip.mp4")
    assert "found 48 x 64 pixels, expected at most 3,071" in refusal(clip, max_pixels=3071)


@pytest.mark.parametrize(
    ("name", "hw", "num_frames", "fps"),
    [("bedroom.mp4", (540, 960), 200, 30.0), ("01_dog.mp4", (720, 1280), 289, 30000 / 1001)],
)
def test_real_videos(name, hw, num_frames, fps):
    with open_frames(shared_data.path("clips", name)) as source:
        assert source.name == name.removesuffix(".mp4")
        assert (source.original_hw, source.num_frames) == (hw, num_frames)
        assert source.fps == pytest.approx(fps)
        assert source.frame_name(7) == "00007"
        count, previous = 0, None
        for frame in source:
            assert frame.shape == (*hw, 3)
            assert frame.dtype == np.uint8
            assert previous is None or not np.array_equal(frame, previous)
            previous, count = frame, count + 1
    assert count == num_frames


TURNS = {  # display matrices of MP4: (a, b, c, d), and the turn of the picture, counter-clockwise
    0: (1, 0, 0, 1),
    -1: (0, 1, -1, 0),
    2: (-1, 0, 0, -1),
    1: (0, -1, 1, 0),
}


def turned_video(path, clip, a, b, c, d):
    data = bytearray(clip.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # after version, times, id, duration, layer, volume
    fixed_point = (round(value * 65536) for value in (a, b, 0, c, d, 0, 0, 0))
    data[start : start + 36] = struct.pack(">9i", *fixed_point, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("turns", TURNS)
def test_videos_are_turned_as_their_display_matrix_says(tmp_path, turns):
    clip = video(tmp_path / "clip.mp4", (48, 64), 3)
    with open_frames(turned_video(tmp_path / "turned.mp4", clip, *TURNS[turns])) as source:
        assert source.original_hw == ((64, 48) if turns % 2 else (48, 64))
        for image, frame in zip(source, open_frames(clip), strict=True):
            np.testing.assert_array_equal(image, np.rot90(frame, turns), strict=True)


def test_videos_turned_by_other_angles_are_refused(tmp_path):
    clip = video(tmp_path / "clip.mp4", (48, 64), 3)
    path = turned_video(tmp_path / "turned.mp4", clip, 0.7071, 0.7071, -0.7071, 0.7071)
    assert "found a rotation of -45 degrees, expected a multiple of 90" in refusal(path)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_videos_are_refused(tmp_path, share):
    data = video(tmp_path / "clip.mp4", (96, 128), 40).read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: int(len(data) * share)])
    text = refusal(path)
    assert "cannot be decoded beyond" in text
    assert "damaged or cut off: get it again or re-encode" in text


@pytest.mark.parametrize("damage", [b"\xff" * 4, b"\x00" * 80])
@pytest.mark.parametrize("offset", [0, 40])
def test_damaged_frames_are_refused_instead_of_concealed(tmp_path, damage, offset):
    av = pytest.importorskip("av")
    clip = video(tmp_path / "clip.mp4", (96, 128), 40)
    with av.open(str(clip)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = bytearray(clip.read_bytes())
    start = positions[20] + offset
    data[start : start + len(damage)] = damage
    path = tmp_path / "bad.mp4"
    path.write_bytes(data)
    assert "cannot be decoded beyond" in refusal(path)


def test_files_that_are_no_video_are_refused(tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_bytes(b"not a video" * 100)
    assert "cannot be decoded beyond 0 frames (Invalid data found" in refusal(path)


def test_sound_alone_is_refused(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "song.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    assert "found no video stream; choose a video file" in refusal(path)


def test_iterations_of_a_video_are_independent_and_end_when_it_is_closed(tmp_path):
    source = open_frames(video(tmp_path / "clip.mp4"))
    first, second = iter(source), iter(source)
    np.testing.assert_array_equal(next(first), next(second))
    assert len(list(first)) == 11
    source.close()
    source.close()
    assert list(second) == []
    assert len(list(source)) == 12


def stop_at_the_first_of(source):
    for _ in source:
        raise RuntimeError


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="counts open files in /proc")
def test_files_are_closed_whatever_happens(tmp_path):
    clip = video(tmp_path / "clip.mp4")
    folder = folder_of(tmp_path, ["1.png", "2.png"])
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:-300])
    before = len(list(OPEN_FILES.iterdir()))
    for path in (clip, folder):
        with open_frames(path) as source:
            frames = iter(source)
            next(frames)
        with pytest.raises(RuntimeError), open_frames(path) as source:
            stop_at_the_first_of(source)
    refusal(tmp_path / "cut.mp4")
    assert len(list(OPEN_FILES.iterdir())) == before


def test_a_missing_video_extra_is_said(tmp_path, monkeypatch):
    clip = video(tmp_path / "clip.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r'pip install "refsam-trt\[video\]"'):
        open_frames(clip)


def test_a_pyav_that_gets_colours_wrong_is_refused(tmp_path, monkeypatch):
    clip = video(tmp_path / "clip.mp4")
    monkeypatch.setattr("av.__version__", "16.1.0")
    with pytest.raises(MissingExtraError, match=r"found PyAV 16\.1\.0, expected 17 or later"):
        open_frames(clip)


def test_importing_needs_no_pyav():
    modules = "refsam_trt.media.frames, refsam_trt.result.writers"
    code = f"import sys; sys.modules['av'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_relative_file_name_with_a_colon_is_a_file(tmp_path, monkeypatch):
    # FFmpeg would read `http:` as a protocol and open a socket.
    monkeypatch.chdir(tmp_path)
    frames = small_videos.moving_frames(3)
    small_videos.write_video(tmp_path / "plain.mp4", frames).rename("http:1.mp4")
    with open_frames("http:1.mp4") as source:
        assert len(list(source)) == 3
    with OverlayVideoWriter(Path("take:2.mp4"), 10, small_videos.HW) as writer:
        for frame in frames:
            writer.write(frame)
    with open_frames("take:2.mp4") as source:
        assert len(list(source)) == 3


def test_video_colours_are_red_green_blue(tmp_path):
    frame = np.full((32, 48, 3), (200, 90, 20), np.uint8)
    with open_frames(small_videos.write_video(tmp_path / "clip.mp4", [frame] * 3)) as source:
        for image in source:
            assert np.abs(image.astype(int) - frame).max() < 30
