"""Leads the measurement: jobs one after the other, and a record that is whole after every step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refsam_bench.gpu.isolation import run_isolated
from refsam_bench.gpu.machine import backends, machine, require_gpu
from refsam_bench.gpu.request import Case, GpuRequest, Job, Subject
from refsam_bench.gpu.steps import Event
from refsam_trt.files.atomic import atomic_path
from refsam_trt.files.target import refuse_file

Runner = Callable[[Job, Callable[[Event], None], Path, float | None], None]
"""Runs a job: `isolation.run_isolated`, or in tests this very process."""

SCHEMA = 1


def measure_gpu(
    request: GpuRequest,
    work: Path,
    report: Callable[[str], None],
    run: Runner = run_isolated,
) -> dict[str, Any]:
    """Measure everything that was asked for and write the record to `request.output`.

    Args:
        request: what to measure.
        work: an existing folder for bundles, plans and logs, with room for several times the
            weights.
        report: called with one line per step.
        run: of the jobs.

    Returns:
        The record. `failures` names every step that failed; backends that do not open are no
        failures.

    Raises:
        BackendError: there is no GPU.
        OutputError: the record cannot be written.
    """
    refuse_file(request.output)
    gpu = require_gpu()
    record = {
        "schema": SCHEMA,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(gpu, request.commit),
        "backends": backends(request.backends),
        "subjects": [],
        "failures": [],
    }
    _Campaign(request, work, report, run, record).run()
    return record


@dataclass
class _Campaign:
    """Runs the jobs of all subjects and keeps the record.

    Invariant: the file is written whole after every event that ends a step.
    """

    request: GpuRequest
    work: Path
    report: Callable[[str], None]
    run_job: Runner
    record: dict[str, Any]
    start: float = field(default_factory=time.monotonic)
    num_jobs: int = 0

    def run(self) -> None:
        """Run everything."""
        for name, backend in self.record["backends"].items():
            if not backend["works"]:
                self.report(f"{name}: absent: {backend['reason']}")
        for subject in self._subjects():
            self._measure(subject)
        self.record["seconds"] = round(time.monotonic() - self.start, 1)
        self._write()

    def _subjects(self) -> Iterator[Subject]:
        for number, folder in enumerate(self.request.bundles):
            yield self._subject(folder.resolve().name, number, folder, None)
        for number, preset in enumerate(self.request.presets, len(self.request.bundles)):
            yield self._subject(preset, number, None, preset)

    def _subject(self, name: str, number: int, folder: Path | None, preset: str | None) -> Subject:
        work = self.work / f"{number}-{name}"
        work.mkdir()
        return Subject(name, folder or work / "bundle", work, preset)

    def _measure(self, subject: Subject) -> None:
        cases = [
            Case(backend, precision)
            for backend, state in self.record["backends"].items()
            for precision in self.request.precisions
            if state["works"]
        ]
        entry: dict[str, Any] = {
            "name": subject.name,
            "preset": subject.preset,
            "steps": {},
            "cases": {
                case.name: {"backend": case.backend, "precision": case.precision, "steps": {}}
                for case in cases
            },
        }
        self.record["subjects"].append(entry)
        request = self.request
        if not self._done("bundle", Job("bundle", request, subject), entry["steps"]):
            return
        self._job(Job("pytorch", request, subject), entry["steps"])
        ready = []
        for case in cases:
            steps = entry["cases"][case.name]["steps"]
            if case.has_plans and not self._done(
                "build", Job("plans", request, subject, case), steps
            ):
                continue
            ready.append(case)
        for case in ready:
            self._job(Job("memory", request, subject, case), entry["cases"][case.name]["steps"])
        self._job(Job("speed", request, subject, cases=tuple(ready)), entry["steps"])
        for case in ready:
            self._job(Job("checks", request, subject, case), entry["cases"][case.name]["steps"])

    def _done(self, step: str, job: Job, steps: dict[str, Any]) -> bool:
        """Run a job and say whether one of its steps is done."""
        self._job(job, steps)
        return bool(steps.get(step, {}).get("state") == "done")

    def _job(self, job: Job, steps: dict[str, Any]) -> None:
        where = f"{job.subject.name} {job.case.name if job.case else ''}".strip()

        def tell(event: Event) -> None:
            self._note(where, event, steps)

        left = self._seconds_left()
        if left is not None and left <= 0:
            tell({"step": job.kind, "state": "skipped", "reason": "out of time (--limit-s)"})
            return
        self.num_jobs += 1
        log = self.work / f"{self.num_jobs:02d}-{job.kind}.log"
        try:
            self.run_job(job, tell, log, left)
        except OSError as error:  # no process, or no room for its log
            told = {"type": type(error).__name__, "text": str(error)}
            tell({"step": job.kind, "state": "failed", "error": told})

    def _note(self, where: str, event: Event, steps: dict[str, Any]) -> None:
        if event["state"] == "begun":
            return
        name = event["step"]
        steps[name] = {key: value for key, value in event.items() if key != "step"}
        line = f"{where}: {name} {event['state']}"
        if event["state"] == "failed":
            error = event["error"]
            self.record["failures"].append(f"{where}: {name}: {error['type']}: {error['text']}")
            line += f": {error['type']}: {error['text'][:200]}"
        self.report(line)
        self._write()

    def _seconds_left(self) -> float | None:
        limit_s = self.request.limit_s
        return None if limit_s is None else limit_s - (time.monotonic() - self.start)

    def _write(self) -> None:
        text = json.dumps(self.record, indent=1, allow_nan=False) + "\n"
        with atomic_path(self.request.output) as temporary:
            temporary.write_text(text, encoding="utf-8")
