"""RTSP, against a server of our own: the frames that are sent are the frames that are run."""

from collections.abc import Iterator
from pathlib import Path

import fake_bundle
import numpy as np
import pytest
import rtsp_server
from commands_in_process import Commands
from rtsp_server import Stream, serving
from small_videos import HW, moving_frames, write_video

from refsam_trt.errors import VideoError
from refsam_trt.media import sources
from refsam_trt.media.frames import open_frames
from refsam_trt.media.sources import open_source
from refsam_trt.run.cli import main

NUM_FRAMES = 20
FORMS = {"mpeg-ts": (33, "MP2T/90000", "mpeg_ts"), "h264": (96, "H264/90000", "h264")}
# A transport stream tells that a picture is complete by beginning the next one.
NUM_LOST = {"mpeg-ts": 1, "h264": 0}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.ts", moving_frames(NUM_FRAMES))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture
def run(monkeypatch, capfd):
    commands = Commands(monkeypatch, capfd)
    return lambda *arguments: commands(main, *arguments, "--threads", 1)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sources, "OPEN_TIMEOUT_S", 1.5)
    monkeypatch.setattr(sources, "READ_TIMEOUT_S", 1.5)
    return


def stream_of(clip: Path, form: str, **changes: object) -> Stream:
    payload_type, rtp_map, packets = FORMS[form]
    return Stream(payload_type, rtp_map, getattr(rtsp_server, packets)(clip), **changes)


@pytest.mark.parametrize("form", FORMS)
def test_the_frames_that_are_sent_arrive(clip: Path, form: str):
    with serving(stream_of(clip, form)) as address, open_frames(clip) as frames:
        with open_source(f"rtsp://{address}/live") as stream:
            assert (stream.original_hw, stream.fps, stream.num_frames) == (HW, 10, None)
            received = list(stream)
        assert len(received) == NUM_FRAMES - NUM_LOST[form]
        for ours, theirs in zip(received, frames, strict=False):
            np.testing.assert_array_equal(ours, theirs)


def test_a_stream_is_run_like_its_file(run, bundle: Path, clip: Path, tmp_path: Path):
    """With a login, as cameras have one, that is written nowhere."""
    options = ("a dog", "--end", 15, "--save", "masks,rle")
    with serving(stream_of(clip, "h264", login="me:secret")) as address:
        ended = run(
            bundle, f"rtsp://me:secret@{address}/live", *options, "--output", tmp_path / "live"
        )
    assert ended.code == 0, ended.err
    assert run(bundle, clip, *options, "--output", tmp_path / "file").code == 0
    for path in (tmp_path / "file").rglob("*.png"):
        ours = tmp_path / "live" / path.relative_to(tmp_path / "file")
        assert ours.read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "live/masks").iterdir())) == 15
    record = (tmp_path / "live/run.json").read_text()
    assert f'"source": "rtsp://{address}/live"' in record
    assert "secret" not in record + ended.out + ended.err


def test_a_wrong_login_is_refused_and_not_shown(clip: Path):
    with (
        serving(stream_of(clip, "h264", login="me:secret")) as address,
        pytest.raises(VideoError, match=r"/live: cannot be opened \(.*401.*\); check the") as told,
    ):
        open_source(f"rtsp://me:guess@{address}/live")
    assert "guess" not in str(told.value)


@pytest.mark.usefixtures("impatient")
def test_a_stream_that_falls_silent_keeps_what_is_finished(run, bundle, clip, tmp_path):
    out = tmp_path / "out"
    with serving(stream_of(clip, "h264", is_silent_at_end=True)) as address:
        ended = run(bundle, f"rtsp://{address}/live", "a dog", "--output", out, "--save", "masks")
    assert ended.code == 2
    num_frames = len(list((out / "masks").iterdir()))
    assert num_frames >= NUM_FRAMES - 2
    assert f"lost after {num_frames} frames (no data came in time); check the" in ended.message
    assert ended.message.endswith(f"; {num_frames} frames are finished and lie in {out}")


@pytest.mark.usefixtures("impatient")
def test_a_stream_without_pictures_is_refused():
    with (
        serving(Stream(96, "H264/90000", (), is_silent_at_end=True)) as address,
        pytest.raises(VideoError, match=r"no data came in time|gave no frame"),
    ):
        open_source(f"rtsp://{address}/live")
