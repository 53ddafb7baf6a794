"""Fuzzes every reader of files that are not trusted, guided by coverage, for a stated time.

`tests/fuzz_targets.py` says what is fuzzed, beginning with the seeds in `tests/corpus/`. What the
fuzzer learns stays in `bench/runs/fuzz/`: a later run goes on from there, and tries former findings
first. As a program: `python -m refsam_bench.fuzz [TARGET ...] [--seconds N]`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from refsam_trt.errors import MissingExtraError, UsageError

ROOT = Path(__file__).resolve().parents[2]
SEEDS = ROOT / "tests" / "corpus"
LEARNT = ROOT / "bench" / "runs" / "fuzz"

TOTAL_S = 3600
"""Of all targets together."""
HANG_S = 20
MAX_MEMORY_MIB = 2048
_OPTIONS = (
    f"-timeout={HANG_S}",
    f"-rss_limit_mb={MAX_MEMORY_MIB}",
    "-max_len=8192",
    "-len_control=0",
    "-print_final_stats=1",
)
_INTERRUPTED = 72
"""libFuzzer's exit code after SIGINT or SIGTERM: neither a finding nor a finished run."""
_STATISTICS = {
    "num_executions": "number_of_executed_units",
    "slowest_s": "slowest_unit_time_sec",
    "peak_memory_mib": "peak_rss_mb",
}


def target_names() -> list[str]:
    """Return the names of all targets: those of the folders of seeds."""
    return sorted(path.name for path in SEEDS.iterdir())


def fuzz(target: str, seconds: int) -> dict[str, Any]:
    """Fuzz one target and return what was done and found.

    Its `failures` are empty if there was no crash, no hang of `HANG_S`, no use of more than
    `MAX_MEMORY_MIB`, and no exception but those of `refsam_trt.errors`.

    Raises:
        UsageError: no such target.
        MissingExtraError: the fuzzer is not installed.
        KeyboardInterrupt: it was interrupted, here or there.
    """
    if target not in target_names():
        raise UsageError(f"no target {target!r}; targets: {', '.join(target_names())}")
    if importlib.util.find_spec("atheris") is None:
        cause = "atheris is there for Linux on x86-64 and Python 3.11 to 3.13"
        raise MissingExtraError("dev", "fuzzing", cause)
    corpus, findings = LEARNT / target / "corpus", LEARNT / target / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    program = [sys.executable, str(ROOT / "tests" / "fuzz_one.py"), target]
    limits = [*_OPTIONS, f"-max_total_time={seconds}", f"-artifact_prefix={findings}/"]
    # New inputs are kept in the first folder.
    folders = [str(folder) for folder in (corpus, SEEDS / target, findings)]
    log = LEARNT / target / "log.txt"
    with log.open("wb") as file:
        done = subprocess.run(
            [*program, *limits, *folders],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "RUST_BACKTRACE": "0", "OMP_NUM_THREADS": "1"},
            check=False,
        )
    if done.returncode == _INTERRUPTED:
        raise KeyboardInterrupt
    text = log.read_text(encoding="utf-8", errors="replace")
    return {
        "target": target,
        "seconds": seconds,
        **_statistics(text),
        "failures": _failures(text, done.returncode),
    }


def _statistics(log: str) -> dict[str, int]:
    found = {}
    for name, key in _STATISTICS.items():
        if match := re.search(rf"^stat::{key}:\s*(\d+)", log, re.MULTILINE):
            found[name] = int(match[1])
    return found


def _failures(log: str, return_code: int) -> list[str]:
    if return_code == 0:
        return []
    telling = re.findall(r"^(?:\w[\w.]*(?:Error|Exception|Warning)\b.*|.*ERROR: .*)$", log, re.M)
    saved = re.findall(r"Test unit written to (\S+)", log)
    return [" | ".join([f"exit code {return_code}", *telling[-3:], *saved])]


@click.command()
@click.argument("targets", nargs=-1)
@click.option("--seconds", default=TOTAL_S, show_default=True, help="Of all targets together.")
def command(targets: tuple[str, ...], seconds: int) -> None:
    """Fuzz the given targets, or all; exit code 1 if anything was found."""
    names = targets or target_names()
    results = []
    for name in names:
        results.append(fuzz(name, max(1, seconds // len(names))))
        click.echo(json.dumps(results[-1]))
    sys.exit(any(result["failures"] for result in results))


if __name__ == "__main__":
    command()
