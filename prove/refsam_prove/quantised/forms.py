"""Calibrations of random weights: what each part of them is worth, and what memory they need.

All layers of the default kinds in int8. Ranges come from training seeds, errors from frames of the
tuning seed. Forms: plain min-max ranges, chosen ranges, smoothing as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refsam_bench.accuracy.metrics import region_similarity
from refsam_bench.datasets.synthetic import RANKED_SLICES
from refsam_bench.speed.memory import peak_rss_mib
from refsam_bench.synthetic import TUNE_SEED, generate
from refsam_bench.trackers.reference import ReferenceTracker
from refsam_calibration.clips import Clips, SyntheticClips
from refsam_calibration.quantise.fake_quantisation import fake_quantised
from refsam_calibration.quantise.layers import DEFAULT_KINDS, choose_units
from refsam_calibration.ranges.measure import measure_ranges
from refsam_calibration.ranges.ranges import RangeOptions, Ranges
from refsam_calibration.ranges.videos import digest_of, open_videos
from refsam_export.refsam.checkpoint import LoadedModel, load_model
from refsam_prove.exports import SEED

# The smoothed form last: the model keeps the smoothing, of which the others must see nothing.
FORMS: dict[str, dict[str, Any]] = {
    "minmax": {"method": "minmax", "alpha": "none"},
    "mse": {"method": "mse", "alpha": "none"},
    "mse, smoothed": {"method": "mse", "alpha": "auto"},
}
_FRAME_INDICES = (0, 8)


@dataclass(frozen=True)
class _Run:
    """Outputs of the image encoder, float32 [1, 256, h, w] per frame, and the masks."""

    embeddings: list[Tensor]
    masks: list[NDArray[np.bool_]]


def compare_forms(preset: str, num_frames: int) -> dict[str, dict[str, float]]:
    """Return per form the relative error of the image encoder's output and the masks' mean IoU.

    Args:
        preset: of the model, whose weights are random.
        num_frames: to calibrate with, and to measure on: a multiple of 2.
    """
    loaded = load_model(preset, random_init=SEED)
    expected = _run(loaded, num_frames // 2)
    figures = {}
    for name, options in FORMS.items():
        ranges = _calibrate(loaded, num_frames // 2, 2, **options)
        with fake_quantised(loaded.model, ranges.amax, "int8"):
            figures[name] = _figures(_run(loaded, num_frames // 2), expected)
    return figures


def calibration_peak_mib(preset: str, num_frames: int) -> float:
    """Calibrate with so many frames, a multiple of 4; return the peak of the whole process."""
    ranges = _calibrate(load_model(preset, random_init=SEED), num_frames // 4, 4)
    assert ranges.num_frames == num_frames
    return peak_rss_mib()


def _calibrate(loaded: LoadedModel, num_videos: int, num_frames: int, **options: Any) -> Ranges:
    """Measure int8 ranges of all layers of the default kinds on synthetic clips."""
    source = SyntheticClips(num_videos=num_videos, frames_per_video=num_frames)
    videos = open_videos(Clips(schema=1, calibrate=(source,)), Path())
    units = choose_units(loaded.model.config, DEFAULT_KINDS)
    layers = tuple(name for unit in units for name in unit.layers)
    settings = RangeOptions(scheme="int8", layers=layers, **options)
    digest = digest_of(videos)
    return measure_ranges(loaded, videos, settings, digest=digest, progress=lambda: None)


def _run(loaded: LoadedModel, num_videos: int) -> _Run:
    run = _Run([], [])
    handle = loaded.model.image_encoder.register_forward_hook(
        lambda module, arguments, output: run.embeddings.append(output[0])
    )
    for index in range(num_videos):
        name = RANKED_SLICES[index % len(RANKED_SLICES)]
        video = generate(TUNE_SEED, index, slice=name, frame_indices=_FRAME_INDICES)
        text = video.expressions[0].text
        for (mask,) in ReferenceTracker(loaded).track(video.frames, [text]):
            run.masks.append(mask)
    handle.remove()
    return run


def _figures(quantised: _Run, expected: _Run) -> dict[str, float]:
    true = torch.cat(expected.embeddings)
    difference = torch.cat(quantised.embeddings) - true
    ious = [region_similarity(*pair) for pair in zip(quantised.masks, expected.masks, strict=True)]
    return {
        "relative_error": float(difference.norm() / true.norm()),
        "mean_mask_iou": float(np.mean(ious)),
        "min_mask_iou": float(np.min(ious)),
    }
