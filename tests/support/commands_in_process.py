"""Console scripts called where the test runs, through their real entry points."""

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The last line of standard error, where a failing command says why."""
        return (self.err.strip().splitlines() or [""])[-1]


class Commands:
    """Calls an entry point with arguments and gives back what a shell would see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capfd = capfd

    def __call__(self, main: Callable[[], None], *arguments: object) -> Ended:
        """Run `main`; signal handlers are put back afterwards."""
        self._monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        self._capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out, err = self._capfd.readouterr()
        return Ended(int(ended.value.code or 0), out, err)
