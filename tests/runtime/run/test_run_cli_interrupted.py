"""Ctrl-C, SIGTERM and lost streams: what is finished stays, whole and readable."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fake_bundle
import numpy as np
import pytest
from commands_in_process import Commands, Ended
from PIL import Image
from small_videos import HW, moving_frames, write_images, write_video

from refsam_trt.command.ending import Terminated
from refsam_trt.media import sources
from refsam_trt.media.frames import open_frames
from refsam_trt.result.rle import mask_from_rle
from refsam_trt.run.cli import main
from refsam_trt.run.interruption import Interruption
from refsam_trt.session.session import Session

MAIN = "from refsam_trt.run.cli import main; main()"


NUM_FRAMES = 40
MAX_IN_HAND = 20
"""Frames between reading and writing: two in each of five queues, and one in each of six hands."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "images", moving_frames(NUM_FRAMES))


@pytest.fixture
def run(monkeypatch, capfd):
    commands = Commands(monkeypatch, capfd)

    def call(*arguments: object) -> Ended:
        return commands(main, *arguments, "--threads", 1)

    return call


def check_finished(out: Path, num_frames: int) -> None:
    """Every output holds exactly the finished frames and can be read."""
    names = [f"{index:05d}" for index in range(num_frames)]
    assert [path.stem for path in sorted((out / "masks").iterdir())] == names
    for name in names:
        with Image.open(out / f"masks/{name}.png") as image:
            image.load()
    rle = json.loads((out / "rle.json").read_text())["frames"]
    assert list(rle) == names
    assert all(mask_from_rle(mask).shape == HW for masks in rle.values() for mask in masks)
    with open_frames(out / "overlay.mp4") as overlay:
        assert len(list(overlay)) == num_frames
    record = json.loads((out / "run.json").read_text())
    assert record["is_complete"] is False
    assert [video["num_frames"] for video in record["videos"].values()] == [num_frames]


def signal_at(monkeypatch: pytest.MonkeyPatch, frame: int, *signals: signal.Signals) -> None:
    """Send signals to this process, the first while a frame is being decoded."""
    decode = Session._decode

    def interrupted_decode(self, track, encoded):
        if self.num_frames == frame:
            for number in signals:
                os.kill(os.getpid(), number)
                time.sleep(0.1)  # two at once would count as one
        return decode(self, track, encoded)

    monkeypatch.setattr(Session, "_decode", interrupted_decode)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_lets_the_frames_in_hand_finish(
    run, monkeypatch, bundle, images, tmp_path, number, code, word
):
    signal_at(monkeypatch, 4, number)
    out = tmp_path / "out"
    ended = run(bundle, images, "a dog", "--output", out, "--json")
    assert ended.code == code
    report = json.loads(ended.out)
    num_frames = report["num_frames"]
    assert 5 <= num_frames <= 5 + MAX_IN_HAND
    assert ended.message == (
        f"refsam-run: {word}; {num_frames} of {NUM_FRAMES} frames are finished and lie in {out}"
    )
    assert report["interrupted"] == word
    check_finished(out, num_frames)


def test_a_signal_before_the_first_frame_leaves_nothing(run, monkeypatch, bundle, tmp_path):
    images = write_images(tmp_path / "images", moving_frames(2))
    add_expression = Session.add_expression

    def interrupted_add(self, text):
        os.kill(os.getpid(), signal.SIGINT)
        return add_expression(self, text)

    monkeypatch.setattr(Session, "add_expression", interrupted_add)
    ended = run(bundle, images, "a dog", "--output", tmp_path / "out")
    assert (ended.code, ended.message) == (130, "refsam-run: interrupted")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_second_signal_ends_at_once_and_leaves_nothing(
    run, monkeypatch, bundle, images, tmp_path
):
    signal_at(monkeypatch, 4, signal.SIGTERM, signal.SIGTERM)
    ended = run(bundle, images, "a dog", "--output", tmp_path / "out")
    assert (ended.code, ended.message) == (143, "refsam-run: terminated")
    assert not list(tmp_path.iterdir())


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interruption() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert isinstance(stop.reason, KeyboardInterrupt)
        assert list(stop.until([1, 2])) == []
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_real_process_ends_in_order(bundle, tmp_path, number, code):
    """Thousands of frames, so that the signal comes in the middle on any machine."""
    video = write_video(tmp_path / "long.mp4", moving_frames(2) * 3000)
    out = tmp_path / "out"
    arguments = [bundle, video, "a dog", "--output", out, "--threads", 1]
    command = [sys.executable, "-c", MAIN, *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob(".out.*/.masks.*/*.png"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    num_frames = json.loads((out / "run.json").read_text())["videos"]["long"]["num_frames"]
    assert 3 <= num_frames < 6000
    assert f"; {num_frames} of 6000 frames are finished and lie in {out}" in err
    check_finished(out, num_frames)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.mp4", "out"]


class _Streams(http.server.BaseHTTPRequestHandler):
    """Sends `whole.ts`; `lost.ts` breaks off half-way, `wider.ts` changes size in the middle."""

    bodies: dict[str, tuple[int, bytes]]

    def do_GET(self):
        length, body = self.bodies[self.path.partition("?")[0]]
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("streams")
    whole = write_video(folder / "whole.ts", moving_frames(20)).read_bytes()
    wider = whole + write_video(folder / "wide.ts", moving_frames(4, (32, 64))).read_bytes()
    _Streams.bodies = {
        "/whole.ts": (len(whole), whole),
        "/lost.ts": (len(whole), whole[: len(whole) // 2]),
        "/wider.ts": (len(wider), wider),
    }
    server = http.server.HTTPServer(("127.0.0.1", 0), _Streams)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_stream_is_run_and_its_secrets_are_kept(run, bundle, address, tmp_path):
    out = tmp_path / "out"
    url = f"http://me:secret@{address}/whole.ts?key=secret"
    ended = run(bundle, url, "a dog", "--output", out, "--end", 15)
    assert ended.code == 0, ended.err
    assert len(list((out / "masks").iterdir())) == 15
    record = json.loads((out / "run.json").read_text())
    assert record["source"] == f"http://{address}/whole.ts"
    assert "secret" not in ended.out + ended.err + (out / "rle.json").read_text()


def test_a_stream_gives_the_frames_of_its_file(address, tmp_path):
    # The bytes that are sent, not encoded anew: libx264 does not promise the same ones twice.
    file = tmp_path / "whole.ts"
    file.write_bytes(_Streams.bodies["/whole.ts"][1])
    with sources.open_source(f"http://{address}/whole.ts") as stream, open_frames(file) as frames:
        assert (stream.original_hw, stream.fps, stream.num_frames) == (HW, 10, None)
        assert stream.frame_name(3) == "00003"
        for ours, theirs in zip(stream, frames, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lost.ts", "lost after {n} frames (Input/output error); check the connection and start"),
        ("wider.ts", "found 32 x 64 pixels in frame {n}, expected 32 x 48 as in the first one"),
    ],
)
def test_a_lost_stream_keeps_what_is_finished(run, bundle, address, tmp_path, name, reason):
    out = tmp_path / "out"
    ended = run(bundle, f"http://{address}/{name}", "a dog", "--output", out)
    assert ended.code == 2
    num_frames = len(list((out / "masks").iterdir()))
    assert 5 < num_frames <= 20
    assert reason.format(n=num_frames) in ended.message
    assert ended.message.endswith(f"; {num_frames} frames are finished and lie in {out}")
    check_finished(out, num_frames)


def test_frames_that_come_too_fast_are_dropped_and_counted(
    run, monkeypatch, bundle, address, tmp_path
):
    decode = Session._decode

    def slow_decode(self, track, encoded):
        time.sleep(0.1)
        return decode(self, track, encoded)

    monkeypatch.setattr(Session, "_decode", slow_decode)
    out = tmp_path / "out"
    ended = run(
        bundle, f"http://{address}/whole.ts", "a dog", "--output", out, "--drop-late", "--json"
    )
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert report["num_frames"] + report["num_dropped"] == 20
    assert report["num_dropped"] > 0
    (video,) = json.loads((out / "run.json").read_text())["videos"].values()
    assert (video["num_frames"], video["num_dropped"]) == (
        report["num_frames"],
        report["num_dropped"],
    )
    names = [path.stem for path in sorted((out / "masks").iterdir())]
    assert len(names) == report["num_frames"]
    assert names[0] == "00000"
    assert int(names[-1]) > len(names)  # frames keep the number that they had in the stream


def test_cameras_are_asked_for_by_number_only_where_that_works(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(sources.VideoError, match="cameras by number work on Linux and macOS; on"):
        sources.open_source("camera:0")
