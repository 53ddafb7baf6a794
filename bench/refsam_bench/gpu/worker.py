"""The process of one job: `python -m refsam_bench.gpu.worker FILE_DESCRIPTOR JOB`."""

from __future__ import annotations

import json
import os
import sys

from refsam_bench.gpu.isolation import END
from refsam_bench.gpu.jobs import JOBS
from refsam_bench.gpu.request import Job
from refsam_bench.gpu.steps import Event, Steps


def main(descriptor: str, job_json: str) -> None:
    """Run a job and write its events to a file descriptor, a line of JSON each."""
    os.set_inheritable(int(descriptor), False)
    job = Job.from_json(job_json)
    with os.fdopen(int(descriptor), "w", encoding="utf-8", buffering=1) as events:

        def tell(event: Event) -> None:
            events.write(json.dumps(event) + "\n")

        JOBS[job.kind](job, Steps(tell))
        tell({"step": job.kind, "state": END})


if __name__ == "__main__":
    main(*sys.argv[1:])
