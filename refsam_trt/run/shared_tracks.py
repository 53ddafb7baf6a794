"""Ref-DAVIS17 as the released scripts run it: one track token per object, of all its annotators.

Their loop is frame > annotator > object, their list of tokens has one place per object, so an
annotator goes on from the token that the annotator before wrote into the same frame, and the first
one from that of the last in the frame before (refsam-model 7.4). Only for comparison with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol

import numpy as np

from refsam_trt.result.result import FrameResults
from refsam_trt.session.encoding import EncodedFrame
from refsam_trt.session.session import Session

TrackStateScope = Literal["expression", "object"]
"""Whose a track token is: one expression's, or one object's, shared by its annotators."""


class Stepper(Protocol):
    """What `refsam-run` needs of a session."""

    def add_expression(self, text: str) -> int:
        """Look for an expression (see `Session`)."""

    def run(self, frames: Iterable[np.ndarray]) -> Iterator[FrameResults]:
        """Yield the results that are due for every frame (see `Session`)."""

    def finish(self) -> Iterator[FrameResults]:
        """Give what is still owed (see `Session`)."""


class SharedTracks:
    """A `Stepper` through a video with one session per annotator, all on one engine.

    A frame is encoded once; the first session does it for all.

    Args:
        sessions: new ones, annotator by annotator; they stay the caller's.
    """

    def __init__(self, sessions: Sequence[Session]) -> None:
        self._sessions = sessions
        self._num_expressions = 0

    def add_expression(self, text: str) -> int:
        """Take the next expression in the data set's order: annotators in turn, object by object.

        Raises:
            ExpressionError: as `Session.add_expression`.
        """
        self._sessions[self._num_expressions % len(self._sessions)].add_expression(text)
        self._num_expressions += 1
        return self._num_expressions - 1

    def run(self, frames: Iterable[np.ndarray]) -> Iterator[FrameResults]:
        """Yield the results of every frame, in the order the expressions were added.

        Args:
            frames: as `Session.step` takes them.

        Raises:
            VideoError, BackendError: as `Session.step`.
        """
        for frame in frames:
            with self._sessions[0].encode(frame) as encoded:
                yield self._decode(encoded)

    def _decode(self, encoded: EncodedFrame) -> FrameResults:
        by_annotator: list[FrameResults] = []
        for number, session in enumerate(self._sessions):
            # Before the first annotator comes the last one, who is still at the frame before.
            session.copy_tracks(self._sessions[number - 1])
            by_annotator += session.decode(encoded)
        results = [result for row in zip(*by_annotator, strict=True) for result in row]
        return FrameResults(by_annotator[0].frame_index, by_annotator[0].frame_hw, results)

    def finish(self) -> Iterator[FrameResults]:
        """Give nothing: families that decide late have no track tokens to share."""
        return iter(())
