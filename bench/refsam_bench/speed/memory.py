"""Peak resident memory of one side over three frames, measured in a process that does only that.

A program: `python -m refsam_bench.speed.memory engine|reference REQUEST`, the request as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from refsam_bench.speed.measure import SpeedRequest, expressions, reference_loop
from refsam_export.parity.inputs import moving_frames

NUM_FRAMES = 3


def main(side: str, request_json: str) -> None:
    """Run one side and print its peak in MiB as JSON."""
    request = SpeedRequest.from_json(request_json)
    run = _run_engine if side == "engine" else _run_reference
    run(request)
    print(json.dumps({"peak_mib": peak_rss_mib()}))


def peak_rss_mib() -> float:
    """Return this process's own peak; `getrusage` would include its parent's at the fork."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak_kib = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak_kib) / 1024


def _run_engine(request: SpeedRequest) -> None:
    import refsam_trt

    frames = moving_frames(NUM_FRAMES, 0, request.frame_hw)
    with refsam_trt.load(
        request.bundle,
        backend=request.backend,
        variant=request.variant,
        num_threads=request.num_threads,
    ) as engine:
        for result in engine.track(frames, expressions(request.num_expressions)):
            _ = result.mask


def _run_reference(request: SpeedRequest) -> None:
    from refsam_trt.bundle.open import open_bundle

    loop = reference_loop(open_bundle(request.bundle), request)
    for frame in moving_frames(NUM_FRAMES, 0, request.frame_hw):
        loop.step(frame, expressions(request.num_expressions))


if __name__ == "__main__":
    main(*sys.argv[1:])
