"""Peak resident memory of one side over three frames, measured in a process that does only that.

A program: `python -m refsam_bench.memory BUNDLE engine|reference VARIANT NUM_EXPRESSIONS [SOURCE]`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FRAME_HW = (480, 854)
NUM_FRAMES = 3


def main(bundle: str, side: str, variant: str, num_expressions: str, *source: str) -> None:
    """Run one side and print its peak in MiB as JSON."""
    from refsam_export.parity.inputs import moving_frames

    frames = moving_frames(NUM_FRAMES, 0, FRAME_HW)
    texts = [f"object number {index}" for index in range(int(num_expressions))]
    if side == "engine":
        import refsam_trt

        with refsam_trt.load(bundle, variant=variant or None) as engine:
            for result in engine.track(frames, texts):
                _ = result.mask
    else:
        from refsam_bench.speed import ReferenceLoop
        from refsam_export.source import load_source
        from refsam_trt.bundle import open_bundle

        folder = Path(source[0]) if source else None
        loop = ReferenceLoop(load_source(open_bundle(Path(bundle)), folder), FRAME_HW)
        for frame in frames:
            loop.step(frame, texts)
    print(json.dumps({"peak_mib": peak_rss_mib()}))


def peak_rss_mib() -> float:
    """Return this process's own peak; `getrusage` would include its parent's at the fork."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak_kib = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak_kib) / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
