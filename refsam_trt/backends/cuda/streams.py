"""A stream of its own for each session, and copies to the host that nobody waits for yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refsam_trt.backends.cuda.errors import device_errors


class OwnStream:
    """A stream of whoever made it; a context manager that one thread at a time enters.

    Args:
        stream: cuda-core's.
        enter, leave: let the calling thread work on a stream, and on the one before it again.
    """

    def __init__(
        self, stream: Any, enter: Callable[[Any], None], leave: Callable[[], None]
    ) -> None:
        self._stream, self._enter, self._leave = stream, enter, leave

    def __enter__(self) -> None:
        self._enter(self._stream)

    def __exit__(self, *_: object) -> None:
        self._leave()

    def record(self) -> Any:
        """Return an event behind all that was put on the stream."""
        with device_errors("recording an event"):
            return self._stream.record()

    def wait(self, event: Any) -> None:
        """Let what follows begin after an event; the host does not wait."""
        with device_errors("waiting for another stream"):
            self._stream.wait(event)


class PendingCopy:
    """A copy on its way to pinned memory, which `give_back` takes once it was asked for."""

    def __init__(self, landing: np.ndarray, event: Any, give_back: Callable[[], None]) -> None:
        self._landing, self._event, self._give_back = landing, event, give_back

    def result(self) -> np.ndarray:
        """Wait for the copy and return it in ordinary memory; to be asked for once."""
        with device_errors("downloading"):
            self._event.sync()
        array = self._landing.copy()
        self._give_back()
        return array
