"""Measures ranges while the reference model follows clips; no activation is kept."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from refsam_bench.trackers.reference import ReferenceTracker
from refsam_calibration.ranges.clipping import clipped_amax
from refsam_calibration.ranges.histogram import Histogram
from refsam_calibration.ranges.ranges import (
    SCHEMA,
    LayerRange,
    RangeOptions,
    Ranges,
    options_digest,
    sha256_of,
)
from refsam_calibration.ranges.smoothing import (
    ALPHAS,
    Smoothing,
    choose_smoothing,
    fold_smoothing,
    norm_readers,
)
from refsam_calibration.ranges.videos import CalibrationVideo
from refsam_calibration.ranges.watching import ChannelWatcher, Watcher, watching
from refsam_export.refsam.checkpoint import LoadedModel


def measure_ranges(
    loaded: LoadedModel,
    videos: Sequence[CalibrationVideo],
    options: RangeOptions,
    *,
    digest: tuple[str, int],
    progress: Callable[[], None],
    seed: int = 0,
) -> Ranges:
    """Run the clips through the reference, once to smooth and once to measure.

    The model's norms and weights are smoothed in place; it computes what it did. Each frame is
    encoded once, and decoded for every expression with the track token of the frame before.

    Args:
        loaded: the reference; not smoothed yet.
        videos: the clips.
        options: how.
        digest: of the clips, from `digest_of`.
        progress: called after each frame of each pass: `num_passes` times the frames.
        seed: of the sample of rows on which alpha is searched.

    Raises:
        CalibrationError: NaN or infinity in an input, a layer that is never called, no frame.
    """
    model_sha256 = sha256_of(loaded.model.image_encoder)
    smoothing = _smooth(loaded, videos, options, progress, seed)
    fold_smoothing(loaded.model, {name: norm.exponents for name, norm in smoothing.items()})
    histograms = {name: Histogram() for name in options.layers}
    _run(loaded, videos, histograms, progress)
    return Ranges(
        schema=SCHEMA,
        model_sha256=model_sha256,
        data_sha256=digest[0],
        options_sha256=options_digest(options),
        options=options,
        num_frames=digest[1],
        smoothing=smoothing,
        layers={name: _range(histogram, options) for name, histogram in histograms.items()},
    )


def num_passes(options: RangeOptions) -> int:
    """Return how often `measure_ranges` runs all clips."""
    return 1 if options.alpha == "none" else 2


def _smooth(
    loaded: LoadedModel,
    videos: Sequence[CalibrationVideo],
    options: RangeOptions,
    progress: Callable[[], None],
    seed: int,
) -> dict[str, Smoothing]:
    if options.alpha == "none":
        return {}
    model = loaded.model
    readers = {
        norm: quantised
        for norm, names in norm_readers(model).items()
        if (quantised := [name for name in names if name in options.layers])
    }
    weights: dict[str, list[Any]] = {
        norm: [model.get_submodule(name).weight for name in names]
        for norm, names in readers.items()
    }
    # All readers of a norm see the same input: one of them is watched.
    halves = []
    for clips in (videos[0::2], videos[1::2]):
        watchers = {norm: ChannelWatcher(w[0].shape[1], seed) for norm, w in weights.items()}
        if clips:
            _run(loaded, clips, {readers[norm][0]: watchers[norm] for norm in readers}, progress)
            halves.append(watchers)
    alphas = ALPHAS if options.alpha == "auto" else (float(options.alpha),)
    return {
        norm: choose_smoothing(
            [halves[0][norm], halves[-1][norm]],
            weights[norm],
            alphas,
            method=options.method,
            scheme=options.scheme,
            percentile=options.percentile,
        )
        for norm in readers
    }


def _run(
    loaded: LoadedModel,
    videos: Sequence[CalibrationVideo],
    watchers: Mapping[str, Watcher],
    progress: Callable[[], None],
) -> None:
    with watching(loaded.model, watchers):
        for video in videos:
            for _ in ReferenceTracker(loaded).logits(video.frames(), video.texts):
                trim_heap()
                progress()


def _range(histogram: Histogram, options: RangeOptions) -> LayerRange:
    amax = clipped_amax(histogram, options.method, options.scheme, options.percentile)
    return LayerRange(amax=amax, largest=histogram.amax)


def trim_heap() -> bool:
    """Give whole free pages back; say whether there was a way to, which only glibc has.

    glibc keeps what programs free, in pieces that later and larger tensors do not fit into: without
    this, the peak of a calibration grew by 7 % from 4 to 16 frames of 1024x1024.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    trim(ctypes.c_size_t(0))
    return True
