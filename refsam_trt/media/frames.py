"""Frames from a video file, a folder of images or one image: uint8 [H, W, 3], RGB, upright.

Rotation stored in the file (a video's display matrix, an image's EXIF orientation) is applied, so
that "on the left" means what a viewer sees. Cameras and live streams are in `sources`.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from refsam_trt.errors import VideoError
from refsam_trt.limits import MAX_FRAME_PIXELS
from refsam_trt.media.pyav import decoder_limits, file_address, import_av, limit_decoder

_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP"}
# EXIF's orientations 2 to 8, each undone by one transposition; 1 is upright.
_EXIF_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# More bits per channel would have to be mapped to 8, and no range is right for every picture.
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


class FrameSource(Protocol):
    """Frames in order, all of one size, once per iteration; close it, or use it in a `with`.

    `name`: the file's stem or the folder's name. `original_hw`: size of every frame, after
    rotation. `num_frames`: None when unknown; for a video it is what the file states, which may
    differ from what can be decoded. `fps`: None for images or when unknown. `is_live`: frames come
    by themselves, and only once.

    An iteration begins at the first frame and yields arrays of the caller's; iterations do not
    disturb each other. It raises VideoError at a frame that is damaged or of another size.
    """

    name: str
    original_hw: tuple[int, int]
    num_frames: int | None
    fps: float | None
    is_live: bool = False

    def __iter__(self) -> Iterator[NDArray[np.uint8]]: ...

    def frame_name(self, index: int) -> str:
        """Return the name of the result of a frame: 00000, 00001, ... or the image's stem."""
        return f"{index:05d}"

    def close(self) -> None:
        """End every iteration and close what it holds open; may be called twice."""
        return

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_frames(path: str | Path, max_pixels: int = MAX_FRAME_PIXELS) -> FrameSource:
    """Open a folder of images, one image (.jpg .jpeg .png .bmp .webp) or a video (all others).

    A folder's images are sorted naturally (frame2 before frame10); hidden files and other suffixes
    are passed over. Grey and palette images become RGB, transparency is dropped (the stored
    colour counts). The first frame is read here, so an unusable source is refused at once. A cut
    off .mkv or .ts, made to be readable anyway, may pass for a shorter video.

    Raises:
        VideoError: missing, empty or unreadable, an animation, more than 8 bits per channel in an
            image, more than `max_pixels` pixels in a frame, or two images of one stem.
        MissingExtraError: a video, and PyAV is not installed.
    """
    path = Path(path)
    if path.is_dir():
        return _Images(_images_of(path), path.resolve().name, max_pixels)
    if not path.is_file():
        raise VideoError(f"{path}: no such file or folder; check the path")
    if path.suffix.lower() in _FORMATS:
        return _Images([path], path.stem, max_pixels)
    return _Video(path, max_pixels)


class _Images(FrameSource):
    """Images read one by one; no file stays open between two frames."""

    def __init__(self, paths: Sequence[Path], name: str, max_pixels: int) -> None:
        self.name = name
        self.num_frames = len(paths)
        self.fps = None
        self._paths = paths
        self._max_pixels = max_pixels
        height, width, _ = _image(paths[0], max_pixels).shape
        self.original_hw = height, width

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for path in self._paths:
            frame = _image(path, self._max_pixels)
            _require_size(frame, self.original_hw, str(path))
            yield frame

    def frame_name(self, index: int) -> str:
        return self._paths[index].stem


def _images_of(folder: Path) -> list[Path]:
    """Return the images of a folder in natural order, or refuse."""
    paths = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in _FORMATS and not path.name.startswith(".") and path.is_file()
    ]
    if not paths:
        raise VideoError(f"{folder}: found no image, expected {' '.join(_FORMATS)} files")
    paths.sort(key=_natural_key)
    stems: dict[str, Path] = {}
    for path in paths:
        other = stems.setdefault(path.stem, path)
        if other is not path:
            raise VideoError(
                f"{folder}: found {other.name} and {path.name}, whose results would have the same "
                "name; rename or remove one"
            )
    return paths


def _natural_key(path: Path) -> tuple[list[tuple[int, int | str]], str]:
    parts = re.findall(r"[0-9]+|[^0-9]+", path.stem)
    return [(0, int(p)) if p.isdecimal() else (1, p) for p in parts], path.name


def _image(path: Path, max_pixels: int) -> NDArray[np.uint8]:
    """Read one image as uint8 [H, W, 3], upright."""
    try:
        with Image.open(path, formats=sorted(set(_FORMATS.values()))) as image:
            _require_pixels(image.height, image.width, max_pixels, path)
            _require_usable(image, path)
            # Palette transparency makes Pillow warn on the way to RGB; it is dropped anyway.
            image.info.pop("transparency", None)
            return np.array(_upright(image).convert("RGB"))
    except VideoError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise VideoError(
            f"{path}: found too many pixels ({error}), expected at most {max_pixels:,} in a frame; "
            "shrink it first"
        ) from error
    except Exception as error:  # damaged files make Pillow raise whatever its parsers stumble over
        raise VideoError(
            f"{path}: not a readable image ({error}); it is damaged, cut off or of another format: "
            "convert it to PNG or remove it"
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF orientation asks, without ever writing its EXIF anew."""
    image.load()  # a PNG's EXIF may stand behind its pixels
    turn = _EXIF_TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _require_usable(image: Image.Image, path: Path) -> None:
    if image.mode not in _EIGHT_BIT_MODES:
        raise VideoError(
            f"{path}: found pixel mode {image.mode}, expected 8 bits per channel; convert it first"
        )
    # A .jpg of several pictures (MPO, many phones) is a photo with previews; its first one counts.
    if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
        raise VideoError(f"{path}: found an animation, expected one picture; convert it to a video")


class _Video(FrameSource):
    """A video decoded by PyAV; every iteration has a container of its own."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.name = path.stem
        self._path = path
        self._max_pixels = max_pixels
        self._av = import_av(f"reading {path}")
        self._running: WeakSet[Generator[NDArray[np.uint8], None, None]] = WeakSet()
        first = next(iter(self), None)
        self.close()
        if first is None:
            raise VideoError(f"{path}: found no frame in the video; it is empty or damaged")
        height, width, _ = first.shape
        self.original_hw = height, width

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        frames = self._decoded()
        self._running.add(frames)
        return frames

    def close(self) -> None:
        for frames in list(self._running):
            frames.close()

    def _decoded(self) -> Generator[NDArray[np.uint8], None, None]:
        first_hw = None
        num_done = 0
        try:
            with self._av.open(
                file_address(self._path),
                # A file may name addresses (playlists do); none of them is opened.
                options={"protocol_whitelist": "file", **decoder_limits(self._max_pixels)},
                metadata_errors="replace",  # titles are often not UTF-8, and are not needed
            ) as container:
                # Threads per slice, PyAV's default: with threads per frame ("AUTO") the error of
                # a last, cut off packet is lost (PyAV 18.1) and the video just ends early.
                for frame in container.decode(self._stream(container)):
                    if frame.is_corrupt:
                        raise self._av.InvalidDataError(errno.EIO, "data is missing or damaged")
                    image = self._upright(frame)
                    first_hw = first_hw or image.shape[:2]
                    _require_size(image, first_hw, f"{self._path}, frame {num_done}")
                    yield image
                    num_done += 1
        except self._av.FFmpegError as error:
            raise VideoError(
                f"{self._path}: cannot be decoded beyond {num_done} frames ({error.strerror}); it "
                "is no video, damaged or cut off: get it again or re-encode what is left of it"
            ) from error

    def _stream(self, container: Any) -> Any:
        """Return the first video stream, its size checked before anything is decoded."""
        if not container.streams.video:
            raise VideoError(f"{self._path}: found no video stream; choose a video file")
        stream = container.streams.video[0]
        limit_decoder(stream, str(self._path), self._max_pixels)
        _require_pixels(stream.height, stream.width, self._max_pixels, self._path)
        self.num_frames = stream.frames or None
        self.fps = float(stream.average_rate) if stream.average_rate else None
        return stream

    def _upright(self, frame: Any) -> NDArray[np.uint8]:
        """Return a decoded frame as [H, W, 3] RGB, turned as the file asks."""
        quarters = round(frame.rotation / 90)
        # The angle is computed from a matrix of fixed-point numbers and may be a little off.
        if abs(frame.rotation - 90 * quarters) > 1:
            raise VideoError(
                f"{self._path}: found a rotation of {frame.rotation} degrees, expected a multiple "
                "of 90; re-encode it upright"
            )
        image: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
        return np.ascontiguousarray(np.rot90(image, quarters))


def _require_size(frame: NDArray[np.uint8], expected_hw: tuple[int, int], where: str) -> None:
    height, width = frame.shape[:2]
    if (height, width) != expected_hw:
        raise VideoError(
            f"{where}: found {height} x {width} pixels, expected {expected_hw[0]} x "
            f"{expected_hw[1]} as in the first frame; split the video or resize its frames"
        )


def _require_pixels(height: int, width: int, max_pixels: int, path: Path) -> None:
    if height * width > max_pixels:
        raise VideoError(
            f"{path}: found {height} x {width} pixels, expected at most {max_pixels:,} pixels in a "
            "frame; shrink it first"
        )
