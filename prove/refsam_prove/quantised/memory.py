"""Peak resident memory of a calibration, for a process that does only that."""

from __future__ import annotations

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


def calibration_peak_mib(preset: str, num_frames: int) -> float:
    """Calibrate with so many frames, a multiple of 4; return the peak of the whole process.

    Random weights, all layers of the default kinds, synthetic clips of 4 frames.
    """
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
    assert ranges.num_frames == num_frames
    return peak_rss_mib()
