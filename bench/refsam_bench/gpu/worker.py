"""The process of one job: `python -m refsam_bench.gpu.worker FILE_DESCRIPTOR JOB`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping

from refsam_bench.gpu.bundles import make_bundle
from refsam_bench.gpu.checks import build, check, measure_memory
from refsam_bench.gpu.isolation import END
from refsam_bench.gpu.pytorch_checks import check_pytorch
from refsam_bench.gpu.request import Job
from refsam_bench.gpu.speed import race
from refsam_bench.gpu.steps import Event, StepRunner

JOBS: Mapping[str, Callable[[Job, StepRunner], None]] = {
    "bundle": make_bundle,
    "pytorch": check_pytorch,
    "plans": build,
    "memory": measure_memory,
    "checks": check,
    "speed": race,
}
"""What each kind does."""


def main(descriptor: str, job_json: str) -> None:
    """Run a job and write its events to a file descriptor, a line of JSON each."""
    os.set_inheritable(int(descriptor), False)
    job = Job.from_json(job_json)
    with os.fdopen(int(descriptor), "w", encoding="utf-8", buffering=1) as events:

        def tell(event: Event) -> None:
            events.write(json.dumps(event) + "\n")

        JOBS[job.kind](job, StepRunner(tell))
        tell({"step": job.kind, "state": END})


if __name__ == "__main__":
    main(*sys.argv[1:])
