"""A histogram of fixed size over values that come in any number, of any magnitude."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUM_BINS = 4096
_CHUNK = 1 << 20


class Histogram:
    """Counts of |x| in `NUM_BINS` bins of equal width from 0 on.

    The width is the smallest power of two with which the largest value so far has a bin. When a
    larger value comes, pairs of bins become one: so the counts are at any time those of one pass
    over all values, whatever their order, and memory does not depend on how many there were.

    Attributes:
        amax: the largest |x| so far.
    """

    def __init__(self) -> None:
        self.amax = 0.0
        self._counts = torch.zeros(NUM_BINS, dtype=torch.int64)
        self._exponent: int | None = None

    @property
    def width(self) -> float:
        """Width of a bin; 0 as long as every value was 0."""
        return 0.0 if self._exponent is None else math.ldexp(1.0 / NUM_BINS, self._exponent)

    @property
    def counts(self) -> Tensor:
        """A copy of the counts, int64 [NUM_BINS]."""
        return self._counts.clone()

    def see(self, values: Tensor) -> None:
        """Count values, float32 of any shape, all finite."""
        for chunk in values.detach().reshape(-1).split(_CHUNK):
            self._add(chunk.abs())

    def _add(self, magnitudes: Tensor) -> None:
        largest = float(magnitudes.max())
        self.amax = max(self.amax, largest)
        self._grow(largest)
        if self._exponent is None:
            self._counts[0] += len(magnitudes)
            return
        # By a power of two: exact, so that a value's bin does not depend on rounding.
        bins = (magnitudes.double() * (1.0 / self.width)).to(torch.int64)
        self._counts += torch.bincount(bins, minlength=NUM_BINS)

    def _grow(self, largest: float) -> None:
        """Widen the bins, if needed, so that `largest` has one."""
        if largest == 0.0:
            return
        _, exponent = math.frexp(largest)  # largest < 2 ** exponent
        if self._exponent is None:  # zeros only so far: the first bin has them at any width
            self._exponent = exponent
        doublings = min(exponent - self._exponent, NUM_BINS.bit_length() - 1)
        if doublings > 0:
            merged = self._counts.reshape(-1, 1 << doublings).sum(1)
            self._counts.zero_()
            self._counts[: len(merged)] = merged
            self._exponent = exponent
