"""What is said of a long export: what it will need, before it starts, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import click

from refsam_export.files.work_folder import Stages
from refsam_export.needs.estimate import GIB, Needs
from refsam_export.needs.machine import available_memory_bytes, free_disk_bytes
from refsam_trt.errors import OutputError

_Value = TypeVar("_Value")
_LINE_EVERY_S = 15.0
_SMALL_BYTES, _SHORT_S = 1.5 * GIB, 60.0
_PARITY_STAGES = ("reference", "comparison")


def say_needs(
    needs: Needs,
    folder: Path,
    num_cores: int,
    report: Callable[[str], None],
    *,
    kept_bytes: int = 0,
    memory_bytes: int | None = None,
) -> None:
    """Say what an export will take, warn where the machine has too little, refuse what cannot be.

    Nothing is said of an export that every machine can do in a minute.

    Args:
        needs: of the export.
        folder: where the output will lie.
        num_cores: that the time was estimated for.
        report: called with each line.
        kept_bytes: of the files of an unfinished export, which need not be written again.
        memory_bytes: that can still be had; None asks the machine.

    Raises:
        OutputError: the disk has less room than the bundle alone takes.
    """
    free = free_disk_bytes(folder) + kept_bytes
    if free < needs.certain_disk_bytes:
        raise OutputError(
            f"the bundle takes at least {_gib(needs.certain_disk_bytes)} and the disk has "
            f"{_gib(free)} left; free some space, or choose another place",
            folder,
        )
    if needs.memory_bytes < _SMALL_BYTES and needs.seconds < _SHORT_S:
        return
    report(
        f"this takes about {_gib(needs.memory_bytes)} of memory, {_gib(needs.disk_bytes)} of disk "
        f"and, with {num_cores} idle cores, {_minutes(needs.seconds)}"
    )
    if free < needs.disk_bytes:
        report(
            f"warning: the disk has {_gib(free)} left in {folder}, so that the export may end "
            "half-way; free some space first"
        )
    available = available_memory_bytes() if memory_bytes is None else memory_bytes
    if available is not None and available < needs.memory_bytes:
        report(
            f"warning: {_gib(available)} of memory are left for this process, so that the system "
            "may end it; close other programs or take a larger machine (what is finished by then "
            "is kept for --resume)"
        )


class TimedStages:
    """Runs the stages of `stages` and says, after each long one, how long the rest will take.

    Args:
        stages: that do the work.
        needs: the time that was estimated.
        report: called with a line after a stage that is done.
        clock: seconds.
    """

    def __init__(
        self,
        stages: Stages,
        needs: Needs,
        num_stages: int,
        report: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stages, self._report, self._clock = stages, report, clock
        self._is_long = needs.seconds >= _SHORT_S
        graphs = max(1, num_stages)
        self._graph_s = (needs.seconds - needs.parity_seconds) / graphs
        self._parity_s = needs.parity_seconds / len(_PARITY_STAGES)
        self._left_s, self._expected_s, self._spent_s = needs.seconds, 0.0, 0.0

    def run(
        self, name: str, kind: type[_Value], files: Sequence[Path], make: Callable[[], _Value]
    ) -> _Value:
        """Run a stage (see `Stages`)."""
        start, expected = self._clock(), self._expected(name)
        value = self._stages.run(name, kind, files, make)
        self._expected_s += expected
        self._spent_s += self._clock() - start
        self._left_s = max(0.0, self._left_s - expected)
        if self._is_long and self._expected_s:
            # This machine may be slower or busier than the one of the estimate.
            left = self._left_s * max(1.0, self._spent_s / self._expected_s)
            self._report(f"done: {name}; about {_minutes(left)} left")
        return value

    def _expected(self, name: str) -> float:
        if name.startswith(_PARITY_STAGES):
            return self._parity_s
        return self._graph_s if name.startswith("graph ") else 0.0


class FrameLines:
    """Tells of pieces of work on standard error, at most every few seconds; can be pickled.

    Args:
        label: begins each line.
        total: number of pieces.
    """

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total, self._done = label, total, 0
        self._said: float | None = None

    def __call__(self, piece: object) -> None:
        """Count one piece."""
        self._done += 1
        now = time.monotonic()
        self._said = self._said or now
        if now - self._said >= _LINE_EVERY_S:
            self._said = now
            click.echo(f"refsam-export: {self._label}: {self._done} of {self._total}", err=True)


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB"


def _minutes(seconds: float) -> str:
    return f"{max(1, round(seconds / 60))} min"
