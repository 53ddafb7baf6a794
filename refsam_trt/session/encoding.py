"""What is done to a frame before any track sees it: checked, preprocessed, encoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count, islice
from typing import Any, get_args

import numpy as np

from refsam_trt.backends.base import Buffer
from refsam_trt.errors import UsageError, VideoError
from refsam_trt.families.base import Family, Features
from refsam_trt.image.preprocess import Preprocessor
from refsam_trt.session.frame_input import Color, frame_size, is_on_device, network_image
from refsam_trt.session.model import SessionModel
from refsam_trt.session.pipeline import overlapped


@dataclass(frozen=True)
class PreparedFrame:
    """The network's input for one frame, and how it came about."""

    image: np.ndarray | Buffer
    preprocessor: Preprocessor


@dataclass(frozen=True)
class EncodedFrame:
    """A frame whose features lie on the device; `Session.encode` makes it. A context manager.

    Any number of sessions of one engine may decode it. Its memory is used again once `release` is
    called, and given back with the last reference.

    Attributes:
        frame_hw: size of the frame in pixels.
    """

    features: Features = field(repr=False)
    preprocessor: Preprocessor = field(repr=False)
    family: Family = field(repr=False)

    @property
    def frame_hw(self) -> tuple[int, int]:
        """Height and width of the frame in pixels."""
        return self.preprocessor.geometry.original_hw

    def release(self) -> None:
        """Let another frame have the memory; to be called once, when no session decodes it."""
        self.features.release()

    def __enter__(self) -> EncodedFrame:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class FrameEncoder:
    """The first half of a session; `prepare` and `encode` may each have a thread.

    Args:
        model: the engine's.
        color: channel order of frames on the host.
        declared_hw: size of the video's frames, None if the first one tells it.

    Raises:
        UsageError: an unknown order of channels.
    """

    def __init__(
        self, model: SessionModel, color: Color, declared_hw: tuple[int, int] | None
    ) -> None:
        if color not in get_args(Color):
            raise UsageError(f"color={color!r} is not one of {', '.join(get_args(Color))}")
        self._model = model
        self._encoder = model.family.open_encoder()
        self._color = color
        self._declared_hw = declared_hw

    def prepare(self, frame: Any, index: int, of_video: Preprocessor | None) -> PreparedFrame:
        """Return the network's input for one frame (see `Session.step`).

        Args:
            frame: the frame.
            index: its number, for messages.
            of_video: what preprocesses the video's frames, None before the first one.

        Raises:
            VideoError: the frame is none, or has another size than the video's.
        """
        frame_hw = frame_size(frame, self._declared_hw)
        if of_video is None:
            of_video = Preprocessor(frame_hw, self._model.preprocess)
        check_size(frame_hw, index, of_video)
        image = network_image(frame, of_video, self._color, self._model.adopt)
        return PreparedFrame(image, of_video)

    def encode(self, frame: PreparedFrame) -> EncodedFrame:
        """Return one frame's features."""
        features = self._encoder.encode(frame.image)
        return EncodedFrame(features, frame.preprocessor, self._model.family)

    def encoded(
        self, frames: Iterable[Any], first_index: int, of_video: Preprocessor | None, ahead: int
    ) -> Iterator[EncodedFrame]:
        """Yield frames encoded, while later ones are taken, prepared and encoded (`overlapped`).

        Whoever gives the frames may reuse their memory: those on the host are copied before the
        next one is taken, and where the first one lies on a GPU, none is taken ahead.
        """
        source = iter(frames)
        first = list(islice(source, 1))
        depth = 0 if first and is_on_device(first[0]) else ahead
        numbers = count(first_index)

        def keep(frame: Any) -> Any:
            if not depth:
                return frame
            if is_on_device(frame):
                raise VideoError(
                    "frame: an array on a GPU behind frames on the host, which are taken ahead; "
                    "use run(frames, ahead=0)"
                )
            return frame.copy() if isinstance(frame, np.ndarray) else frame

        def prepare(frame: Any) -> PreparedFrame:
            nonlocal of_video
            prepared = self.prepare(frame, next(numbers), of_video)
            of_video = prepared.preprocessor
            return prepared

        yield from overlapped(map(keep, chain(first, source)), prepare, self.encode, depth=depth)


def check_size(frame_hw: tuple[int, int], index: int, of_video: Preprocessor) -> None:
    """Refuse a frame that does not fit into its video.

    Raises:
        VideoError: as said.
    """
    expected_hw = of_video.geometry.original_hw
    if frame_hw != expected_hw:
        raise VideoError(
            f"frame {index}: found {frame_hw} (height, width), expected {expected_hw} like the "
            "rest of the video; call reset() to begin another video"
        )
