"""Where `refsam-run` takes frames from: files and folders (`frames`), cameras and stream addresses.

Also which frames of a source are taken. Only an address that the user names opens a socket.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray

from refsam_trt.errors import StreamLostError, UsageError, VideoError
from refsam_trt.limits import MAX_FRAME_PIXELS, MAX_LIVE_FPS
from refsam_trt.media.frames import FrameSource, open_frames
from refsam_trt.media.pyav import decoder_limits, import_av, limit_decoder

OPEN_TIMEOUT_S = READ_TIMEOUT_S = 10.0
"""How long a stream may keep us waiting, for its first byte and for any later one."""

_PROTOCOLS = ("rtsp", "rtsps", "http", "https")
_NETWORK_OPTIONS = {
    # Nothing that an address answers with may lead to local files.
    "protocol_whitelist": "rtsp,rtp,udp,tcp,tls,http,https,httpproxy,crypto",
    # Nor to other servers (see `_NAMING_OTHERS` too).
    "max_redirects": "0",
    # Over UDP a lost packet is a damaged picture.
    "rtsp_transport": "tcp",
}
_NAMING_OTHERS = frozenset({"concat", "dash", "hls", "sdp", "webm_dash_manifest"})
"""Formats of FFmpeg that hold addresses, of any server, instead of pictures."""
_CAMERA = re.compile(r"camera:([0-9]+)|/dev/video([0-9]+)")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True)
class Selection:
    """Frames `start`, `start + stride`, ... before `end` (None: to the last one), counted from 0.

    Raises:
        UsageError: a negative start, a stride below 1, or an end that leaves no frame.
    """

    start: int = 0
    end: int | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        if self.start < 0 or self.stride < 1:
            raise UsageError(
                f"start {self.start}, stride {self.stride}: expected a start of 0 or more and a "
                "stride of 1 or more"
            )
        if self.end is not None and self.end <= self.start:
            raise UsageError(
                f"start {self.start}, end {self.end}: no frame lies between them; the end is not "
                "included and must be greater than the start"
            )

    def of(self, frames: FrameSource) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield (index in the source, frame); the frames between are decoded and dropped."""
        return itertools.islice(enumerate(frames), self.start, self.end, self.stride)

    def count(self, num_frames: int | None) -> int | None:
        """Return how many of `num_frames` are selected; None if that is not known."""
        if num_frames is None and self.end is None:
            return None
        ends = [end for end in (num_frames, self.end) if end is not None]
        return len(range(self.start, min(ends), self.stride))


def open_source(source: str) -> FrameSource:
    """Open a video file, a folder of images, an image, a camera or a stream address.

    Cameras are `camera:0` or `/dev/video0`; addresses begin with rtsp://, rtsps://, http:// or
    https://. All else is a path (see `frames.open_frames`).

    Raises:
        VideoError: it cannot be opened, gives no frame, or is an address of another kind.
        MissingExtraError: PyAV is needed and not installed.
    """
    if camera := _CAMERA.fullmatch(source):
        return LiveStream(source, *_camera_device(camera[1] or camera[2], source), {})
    if address := _ADDRESS.match(source):
        if address[1].lower() not in _PROTOCOLS:
            raise VideoError(
                f"{public_name(source)}: found an address of kind {address[1]}, expected a path or "
                f"one of {', '.join(f'{name}://' for name in _PROTOCOLS)}"
            )
        return LiveStream(public_name(source), source, None, _NETWORK_OPTIONS)
    return open_frames(Path(source))


def public_name(source: str) -> str:
    """Return a source as it may be shown and written down: an address without its secrets.

    User, password and query, which often hold keys, are left out; all else stays as it is.
    """
    if not _ADDRESS.match(source):
        return source
    parts = urlsplit(source)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _formats_of_pictures(formats: Iterable[str]) -> str:
    """Return FFmpeg's list of those that name no other address; some have several names."""
    return ",".join(sorted(f for f in formats if _NAMING_OTHERS.isdisjoint(f.split(","))))


class LiveStream(FrameSource):
    """Frames of a camera or a stream as they come; a `FrameSource` that can be iterated once.

    Pictures that the decoder flags as damaged are passed on: a stream does not come again. Frames
    are not dropped when their user is slow; the device or the sender decides then.

    Args:
        name: how to call it in messages and results.
        url: what FFmpeg opens.
        input_format: FFmpeg's input device, None to find out.
        options: FFmpeg's options for it.

    Raises:
        VideoError: it cannot be opened, is too large, or gives no frame.
        MissingExtraError: PyAV is not installed.
    """

    is_live = True

    def __init__(
        self, name: str, url: str, input_format: str | None, options: dict[str, str]
    ) -> None:
        self.name = name
        self.num_frames = None
        av = import_av(f"reading {name}")
        self._ffmpeg_error: type[Exception] = av.FFmpegError
        try:
            self._container: Any = av.open(
                url,
                format=input_format,
                options={
                    "format_whitelist": _formats_of_pictures(av.formats_available),
                    **options,
                    **decoder_limits(MAX_FRAME_PIXELS),
                },
                metadata_errors="replace",
                timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S),
            )
        except av.FFmpegError as error:
            raise VideoError(self._unusable(error)) from error
        try:
            self._frames = self._decoded()
            self._first = self._first_frame()
        except BaseException:
            self._container.close()
            raise
        height, width, _ = self._first.shape
        self.original_hw = height, width

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        yield self._first
        num_done = 1
        try:
            for frame in self._frames:
                if frame.shape[:2] != self.original_hw:
                    raise StreamLostError(
                        f"{self.name}: found {frame.shape[0]} x {frame.shape[1]} pixels in frame "
                        f"{num_done}, expected {self.original_hw[0]} x {self.original_hw[1]} as in "
                        "the first one; start again for the new size"
                    )
                yield frame
                num_done += 1
        except self._ffmpeg_error as error:
            raise StreamLostError(
                f"{self.name}: lost after {num_done} frames ({_reason(error)}); check the "
                "connection and start again"
            ) from error

    def close(self) -> None:
        """Close the device or the connection; may be called twice."""
        self._container.close()

    def _first_frame(self) -> NDArray[np.uint8]:
        try:
            first = next(self._frames, None)
        except self._ffmpeg_error as error:
            raise VideoError(self._unusable(error)) from error
        if first is None:
            raise VideoError(f"{self.name}: gave no frame; check that it sends video")
        return first

    def _decoded(self) -> Iterator[NDArray[np.uint8]]:
        if not self._container.streams.video:
            raise VideoError(f"{self.name}: found no video stream; choose an address of video")
        stream = self._container.streams.video[0]
        limit_decoder(stream, self.name, MAX_FRAME_PIXELS)
        if stream.height * stream.width > MAX_FRAME_PIXELS:
            raise VideoError(
                f"{self.name}: found {stream.height} x {stream.width} pixels, expected at most "
                f"{MAX_FRAME_PIXELS:,} in a frame; choose a smaller stream"
            )
        rate = float(stream.average_rate or 0)
        self.fps = rate if 0 < rate <= MAX_LIVE_FPS else None
        for frame in self._container.decode(stream):
            quarters = round(frame.rotation / 90)
            yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), quarters))

    def _unusable(self, error: Exception) -> str:
        return (
            f"{self.name}: cannot be opened ({_reason(error)}); check the name and that it is "
            "switched on, connected and not in use"
        )


def _camera_device(index: str, source: str) -> tuple[str, str]:
    """Return what FFmpeg calls a camera on this system, and its input device."""
    if sys.platform.startswith("linux"):
        return f"/dev/video{int(index)}", "v4l2"
    if sys.platform == "darwin":
        return index, "avfoundation"
    raise VideoError(
        f"{source}: cameras by number work on Linux and macOS; on {sys.platform} give the address "
        "of a stream"
    )


def _reason(error: Exception) -> str:
    """Return FFmpeg's words without the address, which may hold a password."""
    if type(error).__name__ == "ExitError":  # PyAV's word for a timeout
        return "no data came in time"
    return str(getattr(error, "strerror", None) or type(error).__name__)
