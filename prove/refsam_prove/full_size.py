"""Steps of `make prove` that export full-size models: memory, time and parity of the command.

The command runs in a process of its own. Its memory, and that of the processes it starts, is read
several times a second: resident pages of all of them together, mapped weight files included.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from refsam_prove import Step
from refsam_prove.exports import SEED, say
from refsam_trt.errors import UsageError

GIB = 2**30
_SAMPLE_S = 0.2
_SHOWN_CHARACTERS = 2000
_PROGRAM = "from refsam_export.cli import main; main()"
_SETTINGS = (
    "refsam-export with random weights, its defaults but for what is named here, in a process of "
    "its own; memory is the largest sum of resident pages (VmRSS, mapped files included) over its "
    "processes, read every 0.2 s"
)


@dataclass(frozen=True)
class Limits:
    """What must hold on two idle cores."""

    memory_bytes: float
    minutes: float


BASE, HUGE = Limits(4 * GIB, 4.0), Limits(12 * GIB, 30.0)


def full_size(
    backbone: str, text_encoder: str, attention: str, limits: Limits, num_frames: int = 5
) -> dict[str, Any]:
    """Export with random weights; `failures` tells which limits do not hold."""
    options = {
        "--backbone": backbone,
        "--text-encoder": text_encoder,
        "--attention": attention,
        "--parity-frames": str(num_frames),
        "--random-init": str(SEED),
    }
    with tempfile.TemporaryDirectory() as scratch:
        words = [word for pair in options.items() for word in pair]
        output = Path(scratch) / "bundle"
        measured = _run([*words, "--json", "--output", str(output)], Path(scratch))
    figures = {
        "settings": {
            "how": _SETTINGS,
            "backbone": backbone,
            "text_encoder": text_encoder,
            "attention": attention,
            "num_frames": num_frames,
        },
        "limits": {"memory_gib": limits.memory_bytes / GIB, "minutes": limits.minutes},
        **measured,
    }
    return {**figures, "failures": [*_broken(figures, limits)]}


def _run(arguments: list[str], folder: Path) -> dict[str, Any]:
    """Run the command; returns what it took and its figures.

    Raises:
        UsageError: it failed.
    """
    load_before, start = os.getloadavg()[0], time.monotonic()
    cpu_before = _cpu_s()
    with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
        command = [sys.executable, "-c", _PROGRAM, *arguments]
        process = subprocess.Popen(command, stdout=out, stderr=err, text=True)
        memory = _Memory(process.pid)
        memory.start()
        code = process.wait()
        memory.stop()
    told = (folder / "stderr").read_text(encoding="utf-8")
    say(told.rstrip().rpartition("\n")[2])
    if code:
        raise UsageError(
            f"refsam-export ended with exit code {code}; make it work and measure again. It said: "
            f"{told[-_SHOWN_CHARACTERS:]}"
        )
    result = json.loads((folder / "stdout").read_text(encoding="utf-8"))
    return {
        "minutes": (time.monotonic() - start) / 60,
        "cpu_s": _cpu_s() - cpu_before,
        "peak_resident_bytes": memory.peak_bytes,
        "peak_anonymous_bytes": memory.peak_anonymous_bytes,
        "peak_of_one_process_bytes": memory.peak_of_one_bytes,
        "load_average": [load_before, os.getloadavg()[0]],
        "bundle_id": result["bundle_id"],
        "parity": result["parity"],
    }


def _broken(figures: dict[str, Any], limits: Limits) -> list[str]:
    failures = []
    if figures["peak_resident_bytes"] > limits.memory_bytes:
        failures.append(
            f"{figures['peak_resident_bytes'] / GIB:.1f} GiB resident, at most "
            f"{limits.memory_bytes / GIB:.0f} allowed"
        )
    if figures["minutes"] > limits.minutes:
        load = max(figures["load_average"])
        failures.append(
            f"{figures['minutes']:.1f} min, at most {limits.minutes:g} allowed on idle cores "
            f"(load average {load:.1f})"
        )
    return failures


class _Memory(threading.Thread):
    """Samples a process and its descendants until it is stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._is_over = pid, threading.Event()
        self.peak_bytes = self.peak_anonymous_bytes = self.peak_of_one_bytes = 0

    def run(self) -> None:
        """Sample."""
        while not self._is_over.wait(_SAMPLE_S):
            fields = [_memory_fields(pid) for pid in _family(self._pid)]
            resident = [field.get("VmRSS", 0) for field in fields]
            anonymous = sum(field.get("RssAnon", 0) for field in fields)
            highest = max((field.get("VmHWM", 0) for field in fields), default=0)
            self.peak_bytes = max(self.peak_bytes, sum(resident))
            self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, anonymous)
            self.peak_of_one_bytes = max(self.peak_of_one_bytes, highest)

    def stop(self) -> None:
        """End the samples."""
        self._is_over.set()
        self.join()


def _family(root: int) -> list[int]:
    """Return a process and all that descend from it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:  # it ended
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    family = [root]
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    return family


def _memory_fields(pid: int) -> dict[str, int]:
    """Return the fields of `/proc/PID/status` that are sizes, in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


STEPS: dict[str, Step] = {
    **{
        f"export-vitb-{attention}": partial(full_size, "vitb", "t5-small", attention, BASE)
        for attention in ("augmented", "bias", "reference")
    },
    "export-vitl": partial(full_size, "vitl", "t5-3b", "augmented", HUGE),
    "export-vith": partial(full_size, "vith", "t5-3b", "augmented", HUGE),
}
