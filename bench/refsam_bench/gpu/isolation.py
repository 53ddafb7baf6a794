"""A job in a process of its own: whatever it dies of becomes a failed step of the record.

TensorRT ends the process where others raise an error, and GPU memory is only surely free again when
the process is gone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from refsam_bench.gpu.request import Job
from refsam_bench.gpu.steps import Event

_SHOWN_CHARACTERS = 1500
END = "end"
"""State of the last event of a process that ended by itself."""


def run_isolated(
    job: Job, tell: Callable[[Event], None], log: Path, timeout_s: float | None
) -> None:
    """Run a job, passing its events on as they come.

    Args:
        job: what to run.
        tell: takes the events. A step that the process died in gets one of state `failed`.
        log: file for everything that the process prints.
        timeout_s: seconds after which it is killed; None lets it run.
    """
    begun: list[str] = []

    def note(event: Event) -> None:
        if event["state"] == "begun":
            begun.append(event["step"])
        elif event["step"] in begun:
            begun.remove(event["step"])
        tell(event)

    reading, writing = os.pipe()
    module = "refsam_bench.gpu.worker"
    command = [sys.executable, "-m", module, str(writing), job.to_json().decode()]
    with log.open("wb") as printed, os.fdopen(reading, encoding="utf-8") as events:
        process = subprocess.Popen(
            command, stdout=printed, stderr=subprocess.STDOUT, pass_fds=(writing,)
        )
        os.close(writing)
        timer = threading.Timer(timeout_s or 0, process.kill)
        if timeout_s is not None:
            timer.start()
        has_ended = _pass_on(events, note)
        code = process.wait()
        is_late = timeout_s is not None and not timer.is_alive()
        timer.cancel()
    if has_ended and code == 0:
        return
    reason = f"killed after {timeout_s:.0f} s" if is_late else _cause(code)
    text = f"the process of this step was {reason}; it printed: {_tail(log)}"
    for step in begun or [job.kind]:
        tell({"step": step, "state": "failed", "error": {"type": "ProcessDied", "text": text}})


def _pass_on(events: Iterable[str], note: Callable[[Event], None]) -> bool:
    """Return whether the process said that it was done; a line cut short is none."""
    for line in events:
        try:
            event: Event = json.loads(line)
        except ValueError:
            return False
        if event["state"] == END:
            return True
        note(event)
    return False


def _cause(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _tail(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    return text[-_SHOWN_CHARACTERS:] or "nothing"
