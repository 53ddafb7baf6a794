"""No socket is opened at run time but to a stream address that the user names."""

import http.server
import signal
import subprocess
import sys
import threading
from pathlib import Path

import fake_bundle
import no_sockets
import pytest
import small_videos

from refsam_trt.errors import VideoError
from refsam_trt.media import sources
from refsam_trt.media.sources import open_source

TESTS = Path(no_sockets.__file__).parent
START = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import no_sockets\n"
FORBID = f"{START}no_sockets.forbid()\n"
EMBEDDED = """
from pathlib import Path
import refsam_trt
bundle, clip, images, cache = map(Path, sys.argv[1:])
with refsam_trt.load(bundle, num_threads=1, text_cache=cache) as engine:
    for source in (clip, images):
        for result in engine.track(source, ["dog", "a cat"]):
            assert result.mask.ndim == 2
    with engine.open_video() as video:
        video.add_expression("dog")
        video.save_state(cache / "state")
        video.load_state(cache / "state")
"""
COMMAND = "from refsam_trt.{} import main; sys.argv[0] = 'command'; main()"
IS_WATCHED_IN_C = subprocess.run(
    [sys.executable, "-c", f"{START}sys.exit(not no_sockets.forbid())"], check=False
)


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FORBID + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return small_videos.write_video(tmp_path / "clip.mp4", small_videos.moving_frames(3))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return small_videos.write_images(tmp_path / "images", small_videos.moving_frames(2))


def test_the_library_opens_none(folder: Path, clip: Path, images: Path, tmp_path: Path):
    done = run(EMBEDDED, folder, clip, images, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_commands_open_none(folder: Path, clip: Path, images: Path, tmp_path: Path):
    for source in (clip, images):
        output = ["--output", tmp_path / f"{source.stem}-out", "--save", "masks,rle,overlay,json"]
        done = run(COMMAND.format("run.cli"), folder, source, "dog", *output)
        assert done.returncode == 0, done.stderr
    done = run(COMMAND.format("doctor.cli"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "ffconcat version 1.0\nfile http://127.0.0.1:9/a.ts\n",
        '<?xml version="1.0"?><MPD profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period>'
        "<BaseURL>http://127.0.0.1:9/</BaseURL></Period></MPD>",
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".sdp"])
def test_files_that_name_addresses_open_none(tmp_path: Path, content: str, suffix: str):
    path = tmp_path / f"clip{suffix}"
    path.write_text(content)
    code = "from refsam_trt.media.frames import open_frames; open_frames(sys.argv[1])"
    done = run(code, path)
    assert done.returncode == 1
    assert "refsam_trt.errors.VideoError" in done.stderr


def test_a_socket_from_python_is_seen():
    done = run("import socket; socket.socket()")
    assert done.returncode == no_sockets.EXIT_CODE
    assert "opened a socket: socket.__new__" in done.stderr


@pytest.mark.skipif(IS_WATCHED_IN_C.returncode != 0, reason="system calls cannot be filtered here")
@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_the_address_that_the_user_names_does(folder: Path, tmp_path: Path, scheme: str):
    arguments = [folder, f"{scheme}://127.0.0.1:9/a", "dog", "--output", tmp_path / "out"]
    done = run(COMMAND.format("run.cli"), *arguments)
    assert done.returncode == -signal.SIGSYS


class _Server(http.server.ThreadingHTTPServer):
    """Answers on this machine: paths to (status, headers, body); notes what it was asked for."""

    def __init__(self, answers: dict[str, tuple[int, dict[str, str], bytes]]) -> None:
        self.answers, self.asked = answers, []
        super().__init__(("127.0.0.1", 0), _Answers)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        status, headers, body = self.server.answers[self.path]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_formats_that_name_addresses_are_left_out_by_any_of_their_names():
    formats = {"mov,mp4", "hls", "hls,applehttp", "sdp", "dash", "concat", "mpegts"}
    assert sources._formats_of_pictures(formats) == "mov,mp4,mpegts"


def test_a_named_address_leads_to_no_other_server(clip: Path):
    content = clip.read_bytes()
    other = _Server({"/a.ts": (200, {}, content), "/clip.mp4": (200, {}, content)})
    playlist = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other.address}/a.ts\n#EXT-X-ENDLIST\n"
    )
    named = _Server(
        {
            "/clip.mp4": (200, {}, content),
            "/list.m3u8": (200, {}, playlist.encode()),
            "/moved.mp4": (302, {"Location": f"{other.address}/clip.mp4"}, b""),
        }
    )
    with named, other:
        with open_source(f"{named.address}/clip.mp4") as source:
            assert len(list(source)) == 3
        for path in ("list.m3u8", "moved.mp4"):
            with pytest.raises(VideoError, match=f"{path}: cannot be opened"):
                open_source(f"{named.address}/{path}")
        for server in (named, other):
            server.shutdown()
    assert {"/clip.mp4", "/list.m3u8", "/moved.mp4"} <= set(named.asked)
    assert other.asked == []
