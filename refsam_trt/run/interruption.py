"""Ctrl-C and SIGTERM as an orderly end: noted when they come, acted on between two frames."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

from refsam_trt.command.ending import Terminated
from refsam_trt.errors import StreamLostError

_RAISED: dict[int, type[BaseException]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Terminated,
}
_Item = TypeVar("_Item")


class Interruption:
    """Why work should end early; a context manager for the main thread, restoring handlers.

    `reason`: None, or the exception that stands for the signal or the lost stream. A second signal
    is raised where it arrives: whoever asks twice wants no orderly end.
    """

    def __init__(self) -> None:
        self.reason: BaseException | None = None
        self._has_signal = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        self._handlers = {number: signal.signal(number, self._note) for number in _RAISED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def until(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield items until the first reason to stop; a stream that is lost is such a reason."""
        try:
            for item in items:
                if self.reason is not None:
                    return
                yield item
        except StreamLostError as error:
            self.reason = error

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._has_signal:
            raise _RAISED[number]
        self._has_signal = True
        self.reason = _RAISED[number]()
