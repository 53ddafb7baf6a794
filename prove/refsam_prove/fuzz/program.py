"""Fuzzes every reader of files that are not trusted, guided by coverage, for a stated time.

`tests/support/fuzz_targets.py` says what is fuzzed, from the seeds in `tests/corpus/` on. What the
fuzzer learns stays in `bench/runs/fuzz/`: a later run goes on from there, and tries former findings
first. Time is CPU time spent on inputs: neither waiting for a core nor loading the program counts.
As a program: `python -m refsam_prove.fuzz.program [TARGET ...] [--seconds N]`.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click

from refsam_trt.errors import MissingExtraError, UsageError

ROOT = Path(__file__).resolve().parents[3]
SEEDS = ROOT / "tests" / "corpus"
LEARNT = ROOT / "bench" / "runs" / "fuzz"

TOTAL_S = 3600
"""CPU time of all targets together."""
ROUND_S = 60
"""Longest time of one process: what an interrupted run loses."""
MIN_ROUND_S = 10
"""Shortest one: starting takes seconds too, so a busy machine would do little else at the end."""
HANG_S = 20
MAX_MEMORY_MIB = 2048
_SETUP = re.compile(r"^setup took ([0-9.]+) CPU seconds$", re.MULTILINE)
"""What `tests/support/fuzz_one.py` prints before the first input."""
_MAX_WALL_PER_CPU = 20
"""A run that gets less of a core than one in so many is given up: something else is wrong."""
_OPTIONS = (
    f"-timeout={HANG_S}",
    f"-rss_limit_mb={MAX_MEMORY_MIB}",
    "-max_len=8192",
    "-len_control=0",
    "-print_final_stats=1",
)
_AS_GRANDCHILD = ("/bin/sh", "-c", '"$@"; exit $?', "sh")
"""libFuzzer judges a process by its peak memory, which on Linux begins with that of the process
that started it: a small shell, and not whatever has imported PyTorch."""
_INTERRUPTED = 72
"""libFuzzer's exit code after SIGINT or SIGTERM: neither a finding nor a finished run."""
_STATISTICS = {
    "num_executions": "number_of_executed_units",
    "slowest_s": "slowest_unit_time_sec",
    "peak_memory_mib": "peak_rss_mb",
}


@dataclass(frozen=True)
class Fuzzed:
    """What was done to one target.

    Attributes:
        target: its name.
        cpu_s: CPU time spent on inputs, user and system.
        wall_s: time that passed meanwhile, start of the processes included.
        num_executions: inputs tried.
        slowest_s: wall time of the slowest input, whole seconds.
        peak_memory_mib: largest resident memory.
        failures: what was found; the run ended there.
    """

    target: str
    cpu_s: float = 0.0
    wall_s: float = 0.0
    num_executions: int = 0
    slowest_s: int = 0
    peak_memory_mib: int = 0
    failures: tuple[str, ...] = ()


def target_names() -> list[str]:
    """Return the names of all targets: those of the folders of seeds."""
    return sorted(path.name for path in SEEDS.iterdir())


def fuzz(
    target: str,
    cpu_s: float,
    done: Fuzzed | None = None,
    keep: Callable[[Fuzzed], None] = lambda done: None,
) -> Fuzzed:
    """Fuzz one target, in rounds, until it has had its CPU time or something is found.

    The `failures` of the result are empty if there was no crash, no hang of `HANG_S`, no use of
    more than `MAX_MEMORY_MIB`, and no exception but those of `refsam_trt.errors`.

    Args:
        target: its name.
        cpu_s: CPU seconds to spend on inputs.
        done: what was done before and counts.
        keep: called after every round with everything done so far.

    Raises:
        UsageError: no such target.
        MissingExtraError: the fuzzer is not installed.
        KeyboardInterrupt: it was interrupted, here or there; finished rounds have been kept.
    """
    if target not in target_names():
        raise UsageError(f"no target {target!r}; targets: {', '.join(target_names())}")
    if importlib.util.find_spec("atheris") is None:
        cause = "atheris is there for Linux on x86-64 and Python 3.11 to 3.13"
        raise MissingExtraError("dev", "fuzzing", cause)
    done = done or Fuzzed(target)
    began = done
    while done.cpu_s < cpu_s and not done.failures:
        left_s = max(MIN_ROUND_S, math.ceil(cpu_s - done.cpu_s))
        done = _sum(done, _round(target, min(ROUND_S, left_s)))
        wall_s = done.wall_s - began.wall_s
        if done.cpu_s < cpu_s and wall_s > ROUND_S + _MAX_WALL_PER_CPU * cpu_s:
            told = f"starved: {done.cpu_s:.0f} of {cpu_s:.0f} CPU seconds after {wall_s:.0f} s"
            done = replace(done, failures=(*done.failures, told))
        keep(done)
    return done


def _sum(done: Fuzzed, more: Fuzzed) -> Fuzzed:
    return Fuzzed(
        done.target,
        done.cpu_s + more.cpu_s,
        done.wall_s + more.wall_s,
        done.num_executions + more.num_executions,
        max(done.slowest_s, more.slowest_s),
        max(done.peak_memory_mib, more.peak_memory_mib),
        done.failures + more.failures,
    )


def _round(target: str, seconds: int) -> Fuzzed:
    """Run one process for at most so many seconds of wall time."""
    corpus, findings = LEARNT / target / "corpus", LEARNT / target / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    program = [
        *_AS_GRANDCHILD,
        sys.executable,
        str(ROOT / "tests" / "support" / "fuzz_one.py"),
        target,
    ]
    limits = [*_OPTIONS, f"-max_total_time={seconds}", f"-artifact_prefix={findings}/"]
    # New inputs are kept in the first folder.
    folders = [str(folder) for folder in (corpus, SEEDS / target, findings)]
    log = LEARNT / target / "log.txt"
    began_s, began_cpu_s = time.monotonic(), _cpu_of_children_s()
    with log.open("wb") as file:
        ended = subprocess.run(
            [*program, *limits, *folders],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "RUST_BACKTRACE": "0", "OMP_NUM_THREADS": "1"},
            check=False,
        )
    if ended.returncode == _INTERRUPTED:
        raise KeyboardInterrupt
    text = log.read_text(encoding="utf-8", errors="replace")
    setup = _SETUP.search(text)
    # Without the line no input was tried: the process failed before.
    cpu_s = _cpu_of_children_s() - began_cpu_s - float(setup[1]) if setup else 0.0
    return Fuzzed(
        target,
        cpu_s=cpu_s,
        wall_s=time.monotonic() - began_s,
        failures=_failures(text, ended.returncode),
        **_statistics(text),
    )


def _cpu_of_children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _statistics(log: str) -> dict[str, int]:
    statistics = {}
    for name, key in _STATISTICS.items():
        if match := re.search(rf"^stat::{key}:\s*(\d+)", log, re.MULTILINE):
            statistics[name] = int(match[1])
    return statistics


def _failures(log: str, return_code: int) -> tuple[str, ...]:
    if return_code == 0:
        return ()
    telling = re.findall(r"^(?:\w[\w.]*(?:Error|Exception|Warning)\b.*|.*ERROR: .*)$", log, re.M)
    saved = re.findall(r"Test unit written to (\S+)", log)
    return (" | ".join([f"exit code {return_code}", *telling[-3:], *saved]),)


@click.command()
@click.argument("targets", nargs=-1)
@click.option(
    "--seconds", default=TOTAL_S, show_default=True, help="CPU time of all targets together."
)
def command(targets: tuple[str, ...], seconds: int) -> None:
    """Fuzz the given targets, or all; exit code 1 if anything was found."""
    names = targets or target_names()
    results = []
    for name in names:
        results.append(fuzz(name, seconds / len(names)))
        click.echo(json.dumps(asdict(results[-1])))
    sys.exit(any(result.failures for result in results))


if __name__ == "__main__":
    command()
