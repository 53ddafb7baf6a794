"""The bilinear resize of 8-bit images in integers (refsam-model 2.2), one axis at a time.

Half-pixel centres, antialiased when shrinking, weights in units of 2^-22, 8-bit result. It equals
Pillow's, columns first.

Why our own: Pillow may change its resize from version to version, and a mask must not depend on
which one is installed. Integers give the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_WEIGHT_BITS = 22  # as in Pillow: of 32 bits, 8 are the pixel's and 2 are to spare
_HALF = 1 << (_WEIGHT_BITS - 1)
_WHOLE_NUMBER = 2.0**-12
"""How close below a whole number a value counts as that number in `resize_truncated`."""
_BLOCK_VALUES = 65536
"""Accumulator values held at once, 256 KiB of int32: larger and smaller blocks were slower."""


@dataclass(frozen=True)
class AxisTable:
    """One axis of a resize: output i is the sum over t of `weight[t, i]` x input `index[t, i]`.

    All [T, m]; `weight` int32 in units of 2^-22, `share` the same before it was rounded. Taps that
    an output does not need weigh 0 and point at an input that exists.
    """

    index: NDArray[np.intp]
    weight: NDArray[np.int32]
    share: NDArray[np.float64]


def axis_table(n: int, m: int) -> AxisTable | None:
    """Return the table that brings n pixels to m, None when there is nothing to do.

    The T weights of an output add up to at most 2^22 + T / 2, so that a weighted sum stays below
    2^31 and, for T < 16,000, below 256 x 2^22: no clipping needed. The limits of
    `preprocess.geometry` keep a shrink below 3,000 times, T below 6,002.
    """
    if n == m:
        return None
    ratio = n / m
    support = max(ratio, 1.0)
    centre = (np.arange(m) + 0.5) * ratio
    first = np.maximum((centre - support + 0.5).astype(np.intp), 0)
    end = np.minimum((centre + support + 0.5).astype(np.intp), n)
    index = first + np.arange(int((end - first).max()))[:, None]
    share = np.maximum(1.0 - np.abs(index - centre + 0.5) / support, 0.0)
    share[index >= end] = 0.0
    share /= share.sum(axis=0)
    weight = (share * (1 << _WEIGHT_BITS) + 0.5).astype(np.int32)
    used = share.any(axis=1)
    return AxisTable(np.minimum(index, n - 1)[used], weight[used], share[used])


def resize_rounded(
    lines: NDArray[np.uint8], rows: AxisTable | None, columns: AxisTable | None
) -> NDArray[np.uint8]:
    """Return uint8 [n, 3, w] resized along both axes, rounded after each."""
    return resize_rows(resize_columns(lines, columns), rows)


def resize_columns(lines: NDArray[np.uint8], table: AxisTable | None) -> NDArray[np.uint8]:
    """Return uint8 [h, 3, n] resized to [h, 3, m] along its last axis."""
    if table is None:
        return lines
    height, channels, width = lines.shape
    source = lines.reshape(height * channels, width)
    out = np.empty((len(source), table.index.shape[1]), np.uint8)
    for rows in _blocks(out.shape):
        block = source[rows]
        taps = zip(table.index, table.weight, strict=True)
        _weighted_sum(((block.take(i, axis=1), weight) for i, weight in taps), out[rows])
    return out.reshape(height, channels, -1)


def resize_rows(lines: NDArray[np.uint8], table: AxisTable | None) -> NDArray[np.uint8]:
    """Return uint8 [n, 3, w] resized to [m, 3, w] along its first axis."""
    if table is None:
        return lines
    height, channels, width = lines.shape
    source = lines.reshape(height, channels * width)
    out = np.empty((table.index.shape[1], channels * width), np.uint8)
    for rows in _blocks(out.shape):
        taps = zip(table.index[:, rows], table.weight[:, rows], strict=True)
        _weighted_sum(((source[i], weight[:, None]) for i, weight in taps), out[rows])
    return out.reshape(-1, channels, width)


def resize_truncated(
    lines: NDArray[np.uint8], rows: AxisTable | None, columns: AxisTable | None
) -> NDArray[np.uint8]:
    """Return uint8 [n, 3, w] resized along both axes in double precision, the fraction dropped.

    What PyTorch's float32 gives, but for values that lie within its rounding of a whole number.
    Here they count as that number (all white stays white), there the last bit decides.
    """
    if rows is None and columns is None:
        return lines
    values = lines.astype(np.float64)
    if columns is not None:
        values = _float_sum(values.transpose(2, 0, 1), columns).transpose(1, 2, 0)
    if rows is not None:
        values = _float_sum(values, rows)
    return np.floor(values + _WHOLE_NUMBER).clip(0, 255).astype(np.uint8)


def _float_sum(values: NDArray[np.float64], table: AxisTable) -> NDArray[np.float64]:
    """Return float64 [n, a, b] resized to [m, a, b]."""
    out = np.zeros((table.index.shape[1], *values.shape[1:]))
    for index, share in zip(table.index, table.share, strict=True):
        out += values[index] * share[:, None, None]
    return out


def _blocks(shape: tuple[int, int]) -> Iterable[slice]:
    """Yield slices over the rows of a matrix that hold about `_BLOCK_VALUES` values each."""
    step = max(1, _BLOCK_VALUES // shape[1])
    return (slice(start, start + step) for start in range(0, shape[0], step))


def _weighted_sum(
    taps: Iterable[tuple[NDArray[np.uint8], NDArray[np.int32]]], out: NDArray[np.uint8]
) -> None:
    total = np.full(out.shape, _HALF, np.int32)
    product = np.empty(out.shape, np.int32)
    for values, weight in taps:
        product[...] = values
        product *= weight
        total += product
    total >>= _WEIGHT_BITS
    out[...] = total
