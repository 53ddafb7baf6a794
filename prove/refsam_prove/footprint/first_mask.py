"""The shortest way from nothing to a mask, with the runtime's defaults: what `footprint` times.

A program that imports nothing but the runtime and what it needs, because it runs in environments
that hold nothing else of ours: `python -I first_mask.py BUNDLE` prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

FRAME_HW = (360, 640)
EXPRESSION = "the red circle on the left"


def main(bundle: str) -> None:
    """Print when (`time.monotonic`) the first mask was there, what led to it, and memory then."""
    times = {"started_s": time.monotonic()}
    import numpy as np

    import refsam_trt

    frame = np.random.default_rng(0).integers(0, 256, (*FRAME_HW, 3), np.uint8)
    load = refsam_trt.load
    times["imported_s"] = time.monotonic()
    with load(bundle) as engine, engine.open_video() as video:
        times["loaded_s"] = time.monotonic()
        video.add_expression(EXPRESSION)
        times["expression_s"] = time.monotonic()
        (result,) = video.step(frame)
        _ = result.mask
        times["mask_s"] = time.monotonic()
        cpu_s = time.process_time()
        print(json.dumps({**times, "cpu_s": cpu_s, "resident_mb": resident_mb()}))


def resident_mb() -> float:
    """Return this process's resident memory (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) * 1024 / 1e6


if __name__ == "__main__":
    main(sys.argv[1])
