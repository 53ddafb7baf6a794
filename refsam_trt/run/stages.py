"""A video's frames with their results: read, encoded, stepped and drawn in overlapping stages."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from refsam_trt.errors import UsageError, VideoError
from refsam_trt.media.frames import FrameSource
from refsam_trt.media.sources import Selection
from refsam_trt.result.result import FrameResults
from refsam_trt.run.interruption import Interruption
from refsam_trt.run.outputs import Draw, FinishedFrame
from refsam_trt.run.shared_tracks import Stepper
from refsam_trt.session.pipeline import Newest, overlapped

_Indexed = tuple[int, NDArray[np.uint8]]


class SelectedFrames:
    """The frames of a source that are to be done, until somebody wants the work to stop.

    Args:
        source: of the frames.
        selection: which of them.
        stop: tells when somebody does.
        is_dropping: take the newest frame only, whenever one can be done.

    Raises:
        UsageError: frames of a file were to be dropped.
    """

    def __init__(
        self, source: FrameSource, selection: Selection, stop: Interruption, *, is_dropping: bool
    ) -> None:
        if is_dropping and not source.is_live:
            raise UsageError(
                f"--drop-late: {source.name} is no live source, so its frames wait; leave it out"
            )
        self.source = source
        self.selection = selection
        frames = stop.until(selection.of(source))
        self._newest = Newest(frames) if is_dropping else None
        self._frames: Iterable[_Indexed] = self._newest or frames

    @property
    def num_dropped(self) -> int:
        """How many frames were left out because others were still being done."""
        return self._newest.num_dropped if self._newest else 0

    def __iter__(self) -> Iterator[_Indexed]:
        """Yield index and frame; to be called once."""
        return iter(self._frames)


def finished_frames(
    session: Stepper, frames: SelectedFrames, draw: Draw, *, is_late: bool
) -> Iterator[FinishedFrame]:
    """Yield every frame with its results, drawn, in order.

    Reading, preprocessing, encoding, the step, and drawing each have a thread (see `overlapped`),
    so that the caller has nothing left to do but to write.

    Raises:
        UsageError: a live source, and a model whose results come late.
    """
    if is_late and frames.source.is_live:
        raise UsageError(
            f"{frames.source.name}: this model decides when a video ends, which a live source does "
            "not; record it, and run the file"
        )
    pairs = _read_twice(session, frames) if is_late else _kept_till_done(session, frames)

    def finished(pair: tuple[FrameResults, _Indexed]) -> FinishedFrame:
        results, (index, frame) = pair
        draw(results)
        return FinishedFrame(frames.source.frame_name(index), index, frame, results)

    return overlapped(pairs, finished)


def _kept_till_done(
    session: Stepper, frames: SelectedFrames
) -> Iterator[tuple[FrameResults, _Indexed]]:
    under_way: deque[_Indexed] = deque()

    def taken() -> Iterator[NDArray[np.uint8]]:
        for indexed in frames:
            under_way.append(indexed)
            yield indexed[1]

    for results in session.run(taken()):
        yield results, under_way.popleft()


def _read_twice(
    session: Stepper, frames: SelectedFrames
) -> Iterator[tuple[FrameResults, _Indexed]]:
    """Pair late results with frames of a second reading: a video does not fit into memory."""

    def results() -> Iterator[FrameResults]:
        yield from session.run(frame for _, frame in frames)
        yield from session.finish()

    again = iter(frames.selection.of(frames.source))
    for result in results():
        indexed = next(again, None)
        if indexed is None:
            raise VideoError(
                f"{frames.source.name}: ends sooner when it is read again; do not change it while "
                "it is run"
            )
        yield result, indexed
