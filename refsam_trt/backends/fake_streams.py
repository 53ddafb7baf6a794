"""The streams of the fake device: they notice work that nobody put in order.

Every stream counts what is begun on it. Work is known to be done before other work if it lies
earlier on the same stream, behind an event that the other stream waited for, or before something
that the host waited for. Memory remembers who wrote it last and who has read it since.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refsam_trt.errors import InternalError


@dataclass
class History:
    """Who used a piece of memory: work is (stream, number of it on the stream)."""

    write: tuple[FakeStream, int] | None = None
    reads: dict[FakeStream, int] = field(default_factory=dict)


class FakeStreams:
    """The streams of a device, of which each thread has one that it need not enter."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._local = threading.local()

    @property
    def current(self) -> FakeStream:
        """The stream that was entered last, else this thread's own."""
        return self.entered[-1]

    @property
    def entered(self) -> list[FakeStream]:
        """The streams that this thread is in, its own first."""
        if not hasattr(self._local, "entered"):
            self._local.entered = [FakeStream(self)]
        entered: list[FakeStream] = self._local.entered
        return entered


class FakeStream:
    """A stream (see `backends.base.Stream`); in use by one thread at a time."""

    def __init__(self, streams: FakeStreams) -> None:
        self._streams = streams
        self._busy = threading.Lock()
        self.num_begun = 0
        self.num_done = 0
        """How much of its work the host has waited for."""
        self.is_behind: dict[FakeStream, int] = {}
        """How much of other streams' work comes before whatever this one does next."""

    def __enter__(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise InternalError("one stream entered by two threads at once")
        self._streams.entered.append(self)

    def __exit__(self, *_: object) -> None:
        self._streams.entered.pop()
        self._busy.release()

    def record(self) -> FakeEvent:
        """Return an event behind everything that was begun."""
        return FakeEvent(self._streams, {**self.is_behind, self: self.num_begun})

    def wait(self, event: Any) -> None:
        """Put what follows behind an event."""
        for stream, number in event.work.items():
            self.is_behind[stream] = max(self.is_behind.get(stream, 0), number)

    def begin(self, reads: Sequence[History], writes: Sequence[History]) -> None:
        """Begin work on some memory.

        Raises:
            InternalError: other work on the same memory may not be done by then.
        """
        with self._streams.lock:
            for history in (*reads, *writes):
                if history.write:
                    self._check_behind(*history.write, "written")
            for history in writes:
                for stream, number in history.reads.items():
                    self._check_behind(stream, number, "read")
            self.num_begun += 1
            for history in reads:
                history.reads[self] = self.num_begun
            for history in writes:
                history.write, history.reads = (self, self.num_begun), {}

    def _check_behind(self, stream: FakeStream, number: int, used: str) -> None:
        if stream is not self and number > max(stream.num_done, self.is_behind.get(stream, 0)):
            raise InternalError(f"memory is still being {used} on a stream that nobody waited for")


@dataclass(frozen=True)
class FakeEvent:
    """A point of a stream: how much of which stream's work lies before it."""

    streams: FakeStreams
    work: Mapping[FakeStream, int]

    def sync(self) -> None:
        """Let the host wait."""
        with self.streams.lock:
            for stream, number in self.work.items():
                stream.num_done = max(stream.num_done, number)


@dataclass(frozen=True)
class FakeDownload:
    """A copy on its way to the host."""

    array: np.ndarray
    event: FakeEvent

    def result(self) -> np.ndarray:
        """Wait for the copy."""
        self.event.sync()
        return self.array
