"""Steps of a job: each tells what became of it, and none takes the next ones with it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

Event = dict[str, Any]
"""`step`, `state` (`begun`, `done`, `failed` or `skipped`) and what belongs to it."""

_Value = TypeVar("_Value")
_MAX_CHARACTERS = 2000


class StepRunner:
    """Runs steps and tells of each when it begins and ends.

    Args:
        tell: takes the events; they are JSON, numbers that are not finite as text.
    """

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell

    def run(self, name: str, action: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Run a step; return its figures, None if it failed, whatever the reason."""
        return self.keep(name, lambda: (figures := action(), figures))

    def keep(self, name: str, action: Callable[[], tuple[_Value, dict[str, Any]]]) -> _Value | None:
        """Run a step that gives something to go on with, beside its figures; None if it failed."""
        self._tell({"step": name, "state": "begun"})
        start = time.monotonic()
        try:
            value, figures = action()
        except Exception as error:
            self.fail(name, error, start)
            return None
        self._end(name, "done", start, {"figures": _finite(figures)})
        return value

    def skip(self, name: str, reason: str) -> None:
        """Tell that a step is left out."""
        self._tell({"step": name, "state": "skipped", "reason": reason})

    def fail(self, name: str, error: Exception, start: float | None = None) -> None:
        """Tell that a step failed; `start` is what `time.monotonic` said when it began."""
        told = {"type": type(error).__name__, "text": str(error)[:_MAX_CHARACTERS]}
        self._end(name, "failed", start, {"error": told})

    def _end(self, name: str, state: str, start: float | None, more: Event) -> None:
        seconds = None if start is None else round(time.monotonic() - start, 3)
        self._tell({"step": name, "state": state, "seconds": seconds, **more})


def _finite(value: Any) -> Any:
    """Return JSON in which `inf` and `nan` are text: it has no such numbers."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
