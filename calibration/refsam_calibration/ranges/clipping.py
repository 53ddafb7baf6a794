"""From a histogram to the range of a layer's input: what is beyond it is clipped.

A narrower range has finer steps and clips more. `minmax` clips nothing, `percentile` a fixed share
of the values; `mse` minimises the squared error, `entropy` the information that is lost.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from refsam_calibration.quantise.schemes import Scheme, fake_quantise, scale_of
from refsam_calibration.ranges.histogram import Histogram

Method = Literal["minmax", "percentile", "mse", "entropy"]

_NUM_LEVELS = 128
# Ranges that `mse` tries: the largest value over powers of 2 ** (1 / 16), down to 1 / 1024 of it.
_STEPS_PER_OCTAVE, _NUM_OCTAVES = 16, 10
_ENTROPY_STRIDE = 8


def clipped_amax(
    histogram: Histogram, method: Method, scheme: Scheme, percentile: float = 99.99
) -> float:
    """Return the largest magnitude that is to be represented, above 0 and at most the largest seen.

    Args:
        histogram: with at least one value that is not 0.
        method: how to choose.
        scheme: whose steps `mse` has to do with; `entropy` is of int8's equal steps.
        percentile: of `percentile`: share of the values, in percent, that are kept.
    """
    if method == "minmax":
        return histogram.amax
    counts = histogram.counts.numpy()
    if method == "percentile":
        kept = _bins_with(counts, percentile / 100.0)
    elif method == "mse":
        return _least_squares(histogram, scheme)
    else:
        kept = _least_divergence(counts[: int(np.flatnonzero(counts)[-1]) + 1])
    return min(kept * histogram.width, histogram.amax)


def _bins_with(counts: NDArray[np.int64], share: float) -> int:
    """Return how many bins, from the first on, hold at least a share of the values."""
    cumulative = np.cumsum(counts)
    return int(np.searchsorted(cumulative, share * cumulative[-1])) + 1


def _least_squares(histogram: Histogram, scheme: Scheme) -> float:
    counts = histogram.counts.double()
    centres = (torch.arange(len(counts), dtype=torch.float32) + 0.5) * histogram.width
    centres[0] = 0.0  # mostly exact zeros, which lose nothing
    steps = torch.arange(_STEPS_PER_OCTAVE * _NUM_OCTAVES + 1, dtype=torch.float64)
    ranges = (histogram.amax * torch.exp2(-steps / _STEPS_PER_OCTAVE)).float()
    errors = [
        float(((fake_quantise(centres, scale, scheme) - centres).double().square() * counts).sum())
        for scale in scale_of(ranges, scheme)
    ]
    return float(ranges[int(np.argmin(errors))])


def _least_divergence(counts: NDArray[np.int64]) -> int:
    """Return how many bins to keep: least Kullback-Leibler divergence (TensorRT's method).

    As there, the first bin counts like the second: exact zeros lose nothing at any range.
    """
    if len(counts) <= _NUM_LEVELS:
        return len(counts)
    true = counts.astype(np.float64)
    true[0] = true[1]
    # From the widest on: of equals, the wider range.
    candidates = range(len(true), _NUM_LEVELS - 1, -_ENTROPY_STRIDE)
    divergences = [_divergence(true, kept) for kept in candidates]
    return candidates[int(np.argmin(divergences))]


def _divergence(counts: NDArray[np.float64], kept: int) -> float:
    """Return the divergence of `kept` bins in 128 levels from the counts, the rest in the last."""
    inside = counts[:kept]
    true = inside.copy()
    true[-1] += counts[kept:].sum()
    level = np.arange(kept) * _NUM_LEVELS // kept
    is_used = inside > 0
    sums = np.bincount(level, inside, _NUM_LEVELS)
    sizes = np.bincount(level, is_used, _NUM_LEVELS)
    spread = np.where(is_used, sums[level] / np.maximum(sizes[level], 1), 0.0)
    if not spread.any():
        return float("inf")
    p, q = true / true.sum(), spread / spread.sum()
    where = p > 0
    # A bin that only the clipped values fill has no counterpart: as unlikely as can be told.
    floor = np.finfo(np.float64).tiny
    return float(np.sum(p[where] * np.log(p[where] / np.maximum(q[where], floor))))
