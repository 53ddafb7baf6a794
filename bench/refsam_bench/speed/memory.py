"""Peak resident memory of one side over three frames, for a process that does only that."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from refsam_bench.speed.request import SpeedRequest, expressions, reference_loop
from refsam_export.parity.inputs import moving_frames

NUM_FRAMES = 3
Side = Literal["engine", "reference"]


def peak_mib(side: Side, request: SpeedRequest) -> float:
    """Run one side, and return the peak of the whole process in MiB."""
    (_run_engine if side == "engine" else _run_reference)(request)
    return peak_rss_mib()


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
