"""What one side made of a data set: figures, and every mask, kept small."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from refsam_bench.trackers.reference import LogitTracker, Memory, Tracker

Frame = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """One expression said about one sequence; `frames` are the names of those that are judged.

    `slice` is None where a data set has none.
    """

    sequence: str
    expression_id: str
    text: str
    slice: str | None
    frames: tuple[str, ...]


@dataclass(frozen=True)
class View:
    """One frame of a case: uint8 [H, W, 3] RGB, the true mask and what is void, bool [H, W]."""

    frame: Frame
    mask: Mask
    void: Mask


@dataclass
class MaskTrack:
    """The masks of one case, packed: one of 480x854 takes about 1 KiB."""

    _packed: list[bytes] = field(default_factory=list)
    _shape_hw: tuple[int, ...] = (0, 0)

    def append(self, mask: Mask) -> None:
        """Add the mask of the next frame, bool [H, W], every time of one size."""
        self._shape_hw = mask.shape
        self._packed.append(zlib.compress(np.packbits(mask).tobytes(), 1))

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, index: int) -> Mask:
        bits = np.frombuffer(zlib.decompress(self._packed[index]), np.uint8)
        count = self._shape_hw[0] * self._shape_hw[1]
        return np.unpackbits(bits, count=count).astype(np.bool_).reshape(self._shape_hw)


@dataclass(frozen=True)
class Answer:
    """The masks given for one case, and the IoU of each with the truth."""

    masks: MaskTrack
    ious: tuple[float, ...]

    @property
    def mean_iou(self) -> float:
        """Mean over the frames."""
        return float(np.mean(self.ious))


@dataclass(frozen=True)
class Outcome:
    """What one side made of a data set.

    Attributes:
        accuracy: what `refsam-bench accuracy` says of it.
        answers: per case, in the data set's order, equal for all sides.
        content_sha256: of all frames and expressions that were given, equal for all sides.
    """

    accuracy: dict[str, Any]
    answers: dict[Case, Answer]
    content_sha256: str


class Dataset(Protocol):
    """Videos with expressions and annotations, checked; runs a side over all of them."""

    @property
    def num_steps(self) -> int:
        """How often `run` calls `progress`."""

    def description(self) -> dict[str, Any]:
        """Return what identifies it, ready for `json.dumps`."""

    def run(self, tracker: LogitTracker, progress: Callable[[], None]) -> Outcome:
        """Let a side answer every case and score it."""

    def view(self, case: Case, index: int) -> View:
        """Return frame `index` of a case's judged frames, read or painted again."""


class ContentHash:
    """Hashes what a tracker is given; hand frames through `frames`."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of everything so far, in hexadecimal."""
        return self._digest.hexdigest()

    def texts(self, texts: Sequence[str]) -> None:
        """Note the expressions of the next video."""
        self._digest.update(repr(list(texts)).encode())

    def frames(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Yield the frames of a video and note each."""
        for frame in frames:
            self._digest.update(repr(frame.shape).encode())
            self._digest.update(np.ascontiguousarray(frame).data)
            yield frame


class Recorder:
    """A tracker of one expression per video that keeps what it was told and what it answered."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self.content = ContentHash()
        self.texts: list[str] = []
        self.tracks: list[MaskTrack] = []

    def track(
        self, frames: Iterable[Frame], texts: Sequence[str], memory: Memory = "kept"
    ) -> Iterator[list[Mask]]:
        """Yield the masks of every frame (see `Tracker`)."""
        (text,) = texts
        self.content.texts(texts)
        self.texts.append(text)
        self.tracks.append(MaskTrack())
        for masks in self._tracker.track(self.content.frames(frames), texts, memory):
            self.tracks[-1].append(masks[0])
            yield masks
