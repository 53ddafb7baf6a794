"""PyAV, which decodes and encodes video: its import, its names for files, its limits."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from refsam_trt.errors import MissingExtraError, VideoError

_MIN_AV = 17


def import_av(needed_for: str) -> ModuleType:
    """Return PyAV.

    Raises:
        MissingExtraError: it is not installed, or too old.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("video", needed_for, str(error)) from error
    # Older ones decode BT.709, the colours of most HD videos, as BT.601: up to 26 levels off.
    if int(av.__version__.split(".")[0]) < _MIN_AV:
        cause = f"found PyAV {av.__version__}, expected {_MIN_AV} or later"
        raise MissingExtraError("video", needed_for, cause)
    return av


def file_address(path: Path) -> str:
    """Return the address of a local file: in `take:1.mp4` FFmpeg would see a protocol."""
    return f"file:{path}"


def decoder_limits(max_pixels: int) -> dict[str, str]:
    """Return the options by which FFmpeg's decoders refuse larger pictures.

    The size that a file or a stream announces need not be that of its pictures.
    """
    return {"max_pixels": str(max_pixels)}


def limit_decoder(stream: Any, name: str, max_pixels: int) -> None:
    """Give the decoder of a stream, which must not have begun, its `decoder_limits`.

    Raises:
        VideoError: FFmpeg has no decoder for the stream.
    """
    if stream.codec_context is None:
        raise VideoError(
            f"{name}: found video in a coding that FFmpeg cannot decode, expected a common one; "
            "re-encode it as H.264"
        )
    stream.codec_context.options = decoder_limits(max_pixels)
