"""Progress of long work on standard error: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

import click

_LINE_EVERY_S = 10.0
"""Where there is no terminal: often enough to see life, seldom enough for a log file."""


class StepCounter(Protocol):
    """Counts the steps of one piece of work: `Progress`, or whatever shows it elsewhere."""

    def update(self, steps: int = 1, note: str = "") -> None:
        """Advance by `steps`; `note` is shown beside."""


class Progress:
    """Counts steps towards a total; a context manager.

    Args:
        label: what is being done.
        total: number of steps, None when it is not known.
        enabled: False prints nothing at all.
    """

    def __init__(self, label: str, total: int | None, *, enabled: bool = True) -> None:
        self._label, self._total, self._enabled = label, total, enabled
        self._done = 0
        self._start = self._printed = time.monotonic()
        self._bar = (
            click.progressbar(
                length=total, label=label, file=sys.stderr, item_show_func=lambda note: note
            )
            if enabled and total and sys.stderr.isatty()
            else None
        )

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.__enter__()
        return self

    def update(self, steps: int = 1, note: str = "") -> None:
        """Advance by `steps`; `note` is shown beside the bar."""
        self._done += steps
        if self._bar is not None:
            self._bar.update(steps, note or self._rate())
        elif self._enabled and time.monotonic() - self._printed >= _LINE_EVERY_S:
            self._line(note)

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, *rest)
        elif self._enabled and kind is None:
            self._line("done")

    def _rate(self) -> str:
        elapsed = time.monotonic() - self._start
        return f"{self._done / elapsed:.1f}/s" if elapsed > 0 else ""

    def _line(self, note: str) -> None:
        self._printed = time.monotonic()
        of = f"/{self._total}" if self._total else ""
        click.echo(f"{self._label}: {self._done}{of} ({self._rate()}) {note}".rstrip(), err=True)
