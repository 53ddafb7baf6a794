"""`make prove`: measures every figure that README states and writes it to `bench/results/`.

Each step writes one JSON file with the commit it was measured at. A step whose file is of the
present commit is skipped, so an interrupted run goes on where it stopped; fuzzing goes on within
its hour, as long as the code that it fuzzes is the same. As a program:
`python -m refsam_prove.steps [STEP ...]` (all of them without an argument).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import click

from refsam_bench.speed.measure import environment, measure_speed
from refsam_bench.speed.request import SpeedRequest
from refsam_prove import Step, encoder, exports, full_size, nano, plans
from refsam_prove.exports import export_random
from refsam_prove.footprint.measure import NEWEST, OLDEST, FootprintRequest, measure_footprint
from refsam_prove.fuzz.record import fuzz_all
from refsam_prove.quantised import calibration
from refsam_prove.quantised import steps as quantised
from refsam_trt.errors import UsageError
from refsam_trt.files.atomic import atomic_path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
IMPORT_RUNS = 5


def main(names: list[str]) -> None:
    """Run the named steps, or all; exit code 1 if one lists `failures`."""
    steps = [*STEPS, FUZZ]
    if unknown := sorted(set(names) - set(steps)):
        raise UsageError(f"no step named {unknown}; steps: {', '.join(steps)}")
    commit = _git("rev-parse", "HEAD")
    if _git("status", "--porcelain", "--untracked-files=no"):
        click.echo("note: uncommitted changes; results are marked as such", err=True)
        commit += "-dirty"
    failures = []
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in names or steps:
        path = RESULTS / f"{name}.json"
        record = json.loads(path.read_text()) if path.is_file() else {}
        if name == FUZZ:
            about = {"step": name, "commit": commit, "environment": environment(None)}
            record = fuzz_all(path, about, click.echo)
        elif record.get("commit") == commit:
            click.echo(f"{name}: measured at this commit already")
        else:
            record = _measure(name, commit, path)
        failures += [f"{name}: {failure}" for failure in record.get("failures", [])]
    for failure in failures:
        click.echo(f"does not hold: {failure}", err=True)
    sys.exit(bool(failures))


def _measure(name: str, commit: str, path: Path) -> dict[str, Any]:
    start = time.monotonic()
    figures = STEPS[name]()
    record = {"step": name, "commit": commit, "environment": environment(None), **figures}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    click.echo(f"{name}: {time.monotonic() - start:.0f} s -> {path.relative_to(ROOT)}")
    return record


def import_time() -> dict[str, Any]:
    """Seconds that `import refsam_trt` and the use of `load` take, median of fresh processes."""
    code = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
    figures = {}
    for name, statement in (
        ("import_s", "import refsam_trt"),
        ("import_and_load_name_s", "import refsam_trt; refsam_trt.load"),
    ):
        runs = [
            float(subprocess.check_output([sys.executable, "-c", code.format(statement)]))
            for _ in range(IMPORT_RUNS)
        ]
        figures[name] = statistics.median(runs)
    return {"num_runs": IMPORT_RUNS, **figures}


def speed(preset: str, num_frames: int, num_expressions: int) -> dict[str, Any]:
    """Engine against the reference loop, interleaved."""
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        export_random(preset, bundle, parity_frames=3)
        request = SpeedRequest(
            bundle, num_frames=num_frames, num_expressions=num_expressions, num_warmup=1
        )
        return {"preset": preset, "speed": measure_speed(request, lambda: None).to_json()}


def footprint(request: FootprintRequest) -> dict[str, Any]:
    """Size of an installation, time and memory to the first mask (`failures` over the limits)."""
    return measure_footprint(request, partial(export_random, "nano", parity_frames=3))


def _git(*arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], cwd=ROOT, text=True).strip()


STEPS: dict[str, Step] = {
    "import": import_time,
    "speed-nano": partial(speed, "nano", 20, 2),
    "speed-vitb": partial(speed, "vitb", 4, 2),
    "footprint-oldest": partial(footprint, OLDEST),
    "footprint-newest": partial(footprint, NEWEST),
    **encoder.STEPS,
    **exports.STEPS,
    **full_size.STEPS,
    **plans.STEPS,
    **calibration.STEPS,
    **quantised.STEPS,
    **nano.STEPS,
}
FUZZ = "fuzz"

if __name__ == "__main__":
    main(sys.argv[1:])
