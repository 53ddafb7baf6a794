"""Results on disk: palette PNGs, COCO RLE in one JSON, an overlay video; each whole or absent.

Every writer is a context manager. Its target appears when the block ends without an error; after
an error, or an interrupt, nothing is left behind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from refsam_trt.errors import OutputError, UsageError
from refsam_trt.files.atomic import atomic_folder, atomic_path
from refsam_trt.media.pyav import file_address, import_av
from refsam_trt.result.overlay import palette_image
from refsam_trt.result.rle import rle_from_mask

_MAX_FPS = 1000.0
_ENCODER_OPTIONS = {
    "preset": "veryfast",
    "crf": "20",
    # With it x264 on AVX-512 gave other bytes in up to 40 % of the runs (PyAV 18.1, one thread).
    "mbtree": "0",
}
_ENCODER_THREADS = 4
"""Fixed: the bytes depend on the number of threads, not on how they are scheduled."""
_BT709, _LIMITED_RANGE = 1, 1
"""FFmpeg's numbers; written into the file, as players guess differently at what is not said."""

_Self = TypeVar("_Self", bound="_Writer")


class _Writer:
    """What the writers share: the target, the names already used, and opening and closing."""

    def __init__(self, target: str | Path) -> None:
        self._target = Path(target)
        self._names: set[str] = set()
        self._stack = ExitStack()

    def __enter__(self: _Self) -> _Self:
        with ExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _open(self, stack: ExitStack) -> None:
        raise NotImplementedError

    def _take_name(self, name: str) -> None:
        if name in self._names or name in ("", "..") or Path(name).name != name:
            raise UsageError(
                f"{self._target}: found frame name {name!r}, expected a new one without folders"
            )
        self._names.add(name)


class PalettePngWriter(_Writer):
    """Write label maps as `folder/<frame name>.png`, 8-bit palette PNGs in DAVIS colours.

    Raises:
        OutputError: on entering, `folder` exists and `overwrite` is False; or as `atomic_folder`.
    """

    def __init__(self, folder: str | Path, overwrite: bool = False) -> None:
        super().__init__(folder)
        self._overwrite = overwrite

    def _open(self, stack: ExitStack) -> None:
        self._folder = stack.enter_context(atomic_folder(self._target, self._overwrite))

    def write(self, frame_name: str, label_map: NDArray[np.uint8]) -> None:
        """Write one label map, uint8 [H, W].

        Raises:
            UsageError: another dtype or shape, or a name used before.
        """
        if label_map.dtype != np.uint8 or label_map.ndim != 2 or not label_map.size:
            raise UsageError(
                f"{self._target}: found a label map {label_map.dtype} {label_map.shape}, expected "
                "uint8 [H, W]"
            )
        self._take_name(frame_name)
        palette_image(label_map).save(self._folder / f"{frame_name}.png", format="PNG")


class RleWriter(_Writer):
    """Write all masks of a video into one JSON file, a line per frame, as they come.

    The object has `video` (a name), `size` ([H, W]), `expressions` (texts) and `frames`: frame
    name -> one compressed COCO RLE per expression, in their order.

    Raises:
        OutputError: as `atomic_path`.
    """

    def __init__(
        self,
        path: str | Path,
        video: str,
        original_hw: tuple[int, int],
        expressions: Sequence[str],
    ) -> None:
        super().__init__(path)
        self._video = video
        self._original_hw = original_hw
        self._expressions = list(expressions)

    def _open(self, stack: ExitStack) -> None:
        path = stack.enter_context(atomic_path(self._target))
        self._file: TextIO = stack.enter_context(path.open("w", encoding="utf-8", newline="\n"))
        head = {
            "video": self._video,
            "size": list(self._original_hw),
            "expressions": self._expressions,
        }
        self._file.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "frames": {')
        stack.push(self._finish)

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._file.write("\n}}\n")

    def write(self, frame_name: str, masks: Sequence[NDArray[np.bool_]]) -> None:
        """Write the masks of one frame, bool [H, W] each, one per expression.

        Raises:
            UsageError: another number, dtype or shape of masks, or a name used before.
        """
        shapes = {mask.shape for mask in masks}
        if len(masks) != len(self._expressions) or shapes - {self._original_hw}:
            raise UsageError(
                f"{self._target}: found {len(masks)} masks of {sorted(shapes)}, expected "
                f"{len(self._expressions)} of {self._original_hw}"
            )
        self._take_name(frame_name)
        comma = "," if len(self._names) > 1 else ""
        line = json.dumps([rle_from_mask(mask) for mask in masks])
        self._file.write(f"{comma}\n{json.dumps(frame_name, ensure_ascii=False)}: {line}")


class OverlayVideoWriter(_Writer):
    """Write frames as an H.264 video (.mp4, 4:2:0, BT.709); the same frames give the same bytes.

    Odd sizes grow to even ones: the last row or column is repeated. The sameness holds for one
    build of PyAV.

    Raises:
        UsageError: `fps` is not in 0..1000, or, on leaving, no frame was written.
        OutputError: as `atomic_path`, or the encoder fails.
        MissingExtraError: on entering, PyAV is not installed.
    """

    def __init__(self, path: str | Path, fps: float, original_hw: tuple[int, int]) -> None:
        super().__init__(path)
        if not 0.0 < fps <= _MAX_FPS:
            raise UsageError(f"{path}: found {fps} frames per second, expected 0 to {_MAX_FPS}")
        self._fps = Fraction(fps).limit_denominator(1001)
        self._original_hw = original_hw
        self._num_frames = 0

    def _open(self, stack: ExitStack) -> None:
        self._av = import_av(f"writing {self._target}")
        self._path = stack.enter_context(atomic_path(self._target))
        # The index goes first, so that players can begin early; no version or date is written.
        options = {"movflags": "+faststart", "fflags": "+bitexact"}
        self._container: Any = self._av.open(
            file_address(self._path), "w", format="mp4", options=options
        )
        stack.push(self._finish)
        try:
            self._stream = self._container.add_stream(
                "libx264", rate=self._fps, options=_ENCODER_OPTIONS
            )
        except ValueError as error:
            raise OutputError(
                f"this PyAV has no H.264 encoder ({error}); install one that has, or do without "
                "--save overlay",
                self._target,
            ) from error
        height, width = self._original_hw
        self._stream.height, self._stream.width = height + height % 2, width + width % 2
        self._stream.pix_fmt = "yuv420p"
        codec = self._stream.codec_context
        codec.thread_count = _ENCODER_THREADS
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED_RANGE

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Encode one frame, uint8 [H, W, 3], RGB.

        Raises:
            UsageError: another dtype or shape.
            OutputError: the encoder fails or the disk is full.
        """
        height, width = self._original_hw
        if frame.dtype != np.uint8 or frame.shape != (height, width, 3):
            raise UsageError(
                f"{self._target}: found a frame {frame.dtype} {frame.shape}, expected uint8 "
                f"{(height, width, 3)}"
            )
        if height % 2 or width % 2:  # 4:2:0 has one sample of colour for 2 x 2 pixels
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        image = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        self._encode(
            image.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        )
        self._num_frames += 1

    def _encode(self, image: Any) -> None:
        """Encode one image, or, for None, what the encoder still holds."""
        with self._file_errors():
            for packet in self._stream.encode(image):
                self._container.mux(packet)

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with suppress(self._av.FFmpegError):
                self._container.close()
            return
        try:
            if not self._num_frames:
                raise UsageError(f"{self._target}: no frame was written, expected at least one")
            self._encode(None)
        finally:
            with self._file_errors():
                self._container.close()

    @contextmanager
    def _file_errors(self) -> Iterator[None]:
        """Name the file in PyAV's errors, which do not, so that `atomic_path` can tell them."""
        try:
            yield
        except self._av.FFmpegError as error:
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(self._path)) from error
            raise OutputError(f"the H.264 encoder failed ({error})", self._target) from error
