"""SIGINT and SIGTERM as requests that the training loop answers between two steps."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

from refsam_trt.command.ending import Terminated


class StopRequest:
    """While entered, a first SIGINT or SIGTERM is only remembered; a second one ends the process.

    A step is never broken off half-way: weights and optimiser state would not belong together.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def is_pending(self) -> bool:
        """Whether a signal has arrived."""
        return self._received is not None

    def raise_if_pending(self) -> None:
        """Raise what the signal would have raised: KeyboardInterrupt or Terminated."""
        if self._received == signal.SIGINT:
            raise KeyboardInterrupt
        if self._received is not None:
            raise Terminated

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._received = number
