"""Two ways to follow expressions, for scoring: a bundle, and the PyTorch reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from refsam_export.refsam.checkpoint import LoadedModel
from refsam_export.refsam.reference import ReferenceModel
from refsam_trt.errors import UsageError
from refsam_trt.result.result import FrameResults
from refsam_trt.session.engine import Engine

Frames: TypeAlias = Iterable[NDArray[np.uint8]]
Masks: TypeAlias = list[NDArray[np.bool_]]
Logits: TypeAlias = list[NDArray[np.float32]]

Memory = Literal["kept", "forgotten"]
"""`forgotten`: no frame sees a track token, as if every frame were the first."""


class Tracker(Protocol):
    """Follows expressions through a video."""

    def track(self, frames: Frames, texts: Sequence[str], memory: Memory) -> Iterator[Masks]:
        """Yield per frame one bool mask [H, W] per expression, in their order."""


class LogitTracker(Tracker, Protocol):
    """A tracker that also gives what its masks are decided from."""

    def logits(self, frames: Frames, texts: Sequence[str]) -> Iterator[Logits]:
        """Yield per frame the logits, float32 [H, W], of each expression, in their order."""


class EngineTracker:
    """A loaded bundle, or what opens videos like one."""

    def __init__(self, engine: Engine | ReferenceModel) -> None:
        self._engine = engine

    def track(
        self, frames: Frames, texts: Sequence[str], memory: Memory = "kept"
    ) -> Iterator[Masks]:
        """Yield the masks of every frame (see `Tracker`)."""
        if memory not in get_args(Memory):
            expected = ", ".join(get_args(Memory))
            raise UsageError(f"memory={memory!r}: expected one of {expected}")
        for results in self._results(frames, texts, memory):
            yield [result.mask for result in results]

    def logits(self, frames: Frames, texts: Sequence[str]) -> Iterator[Logits]:
        """Yield the logits of every frame (see `LogitTracker`)."""
        for results in self._results(frames, texts, "kept"):
            yield [result.logits for result in results]

    def _results(
        self, frames: Frames, texts: Sequence[str], memory: Memory
    ) -> Iterator[FrameResults]:
        with self._engine.open_video() as video:
            ids = [video.add_expression(text) for text in texts]
            for results in video.run(frames):
                yield results
                if memory == "forgotten":
                    for expression_id in ids:
                        video.reset_track(expression_id)


class ReferenceTracker(EngineTracker):
    """The PyTorch reference in SAM's own form, each expression alone and unpadded."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(ReferenceModel.of(loaded))
