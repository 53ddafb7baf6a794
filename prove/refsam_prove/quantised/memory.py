"""Peak resident memory of a calibration, measured in a process that does only that.

A program: `python -m refsam_prove.quantised.memory PRESET NUM_FRAMES`, random weights, all layers
of the default kinds, synthetic clips of 4 frames.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from refsam_bench.speed.memory import peak_rss_mib
from refsam_calibration.clips import Clips, SyntheticClips
from refsam_calibration.quantise.units import DEFAULT_KINDS, choose_units
from refsam_calibration.ranges.measure import measure_ranges
from refsam_calibration.ranges.ranges import RangeOptions
from refsam_calibration.ranges.videos import digest_of, open_videos
from refsam_export.refsam.checkpoint import load_model

FRAMES_PER_VIDEO = 4
_SEED = 0


def main(preset: str, num_frames: int) -> None:
    """Calibrate with so many frames, a multiple of 4, and print the peak in MiB as JSON."""
    loaded = load_model(preset, random_init=_SEED)
    units = choose_units(loaded.model.config, DEFAULT_KINDS)
    layers = tuple(name for unit in units for name in unit.layers)
    source = SyntheticClips(
        num_videos=num_frames // FRAMES_PER_VIDEO, frames_per_video=FRAMES_PER_VIDEO
    )
    videos = open_videos(Clips(schema=1, calibrate=(source,)), Path())
    ranges = measure_ranges(
        loaded,
        videos,
        RangeOptions(scheme="int8", layers=layers),
        digest=digest_of(videos),
        progress=lambda: None,
    )
    print(json.dumps({"num_frames": ranges.num_frames, "peak_mib": peak_rss_mib()}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
