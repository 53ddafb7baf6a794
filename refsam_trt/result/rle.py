"""COCO run-length encoding of masks, the strings of pycocotools included, without pycocotools.

Runs go down the columns, first column first, and alternate between background and mask, beginning
with background (a run of 0 when the first pixel is mask). A string holds each run in groups of 5
bits, lowest first, bit 5 set on all but the last group, 48 added; from the fourth run on it holds
the difference to the run two before.

Why our own: pycocotools reads strings in C without a look at their end or at the size they add up
to, and results of other programs are not to be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from refsam_trt.errors import UsageError
from refsam_trt.limits import MAX_FRAME_PIXELS

_MAX_GROUPS = 7
"""Groups of one run: 35 bits, more than any run or difference below MAX_FRAME_PIXELS needs."""


class Rle(TypedDict):
    """A compressed mask: `size` is [H, W]."""

    size: list[int]
    counts: str


def rle_from_mask(mask: NDArray[np.bool_]) -> Rle:
    """Return bool [H, W] as COCO's compressed RLE, `counts` as str (pycocotools gives bytes).

    Raises:
        UsageError: not bool [H, W], empty, or more than `MAX_FRAME_PIXELS` pixels.
    """
    counts = _counts_from_mask(mask)
    return {"size": list(mask.shape), "counts": _text_from_counts(counts)}


def mask_from_rle(rle: Mapping[str, object]) -> NDArray[np.bool_]:
    """Return the mask, bool [H, W], of a compressed (str, bytes) or uncompressed (list) RLE.

    Safe on input that is not trusted: nothing is allocated before the size is known to be within
    `MAX_FRAME_PIXELS`. Runs of 0 are accepted anywhere, as other tools write them.

    Raises:
        UsageError: other keys, a size that is not two whole numbers within the limit, characters
            outside the code, an unfinished run, a negative one, or runs that do not cover the
            mask exactly.
    """
    if set(rle) != {"size", "counts"}:
        raise UsageError(f"RLE: found keys {sorted(map(str, rle))}, expected 'counts' and 'size'")
    height, width = _checked_size(rle["size"])
    counts = _checked_counts(rle["counts"], height * width)
    values = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, counts).reshape(width, height).T)


def _counts_from_mask(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    if mask.ndim != 2 or mask.dtype != np.bool_ or not 0 < mask.size <= MAX_FRAME_PIXELS:
        raise UsageError(
            f"mask: found {mask.dtype} {mask.shape}, expected bool [H, W] of 1 to "
            f"{MAX_FRAME_PIXELS:,} pixels"
        )
    flat = mask.ravel(order="F")
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate(([0], [0] if flat[0] else [], starts, [flat.size])).astype(np.int64)
    return edges[1:] - edges[:-1]


def _text_from_counts(counts: NDArray[np.int64]) -> str:
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    groups = np.zeros((len(rest), _MAX_GROUPS), np.uint8)
    unfinished = np.ones(len(rest), np.bool_)
    for group in groups.T:
        written = unfinished.copy()
        low = rest & 31
        rest >>= 5
        # Bit 4 of the last group is the sign, so it must agree with what is left.
        unfinished &= rest != np.where(low & 16, -1, 0)
        group[written] = (low + 32 * unfinished + 48)[written]
    return groups[groups > 0].tobytes().decode("ascii")


def _counts_from_text(text: bytes) -> NDArray[np.int64]:
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63:
        raise UsageError("RLE counts: found no or other characters, expected '0' to 'o' only")
    ends = np.flatnonzero(codes < 32)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts[: len(ends)] + 1
    if not len(ends) or ends[-1] != len(codes) - 1 or lengths.max() > _MAX_GROUPS:
        raise UsageError("RLE counts: found an unfinished or overlong run; the string is cut off")
    position = np.arange(len(codes)) - np.repeat(starts, lengths)
    counts = np.add.reduceat((codes & 31) << (5 * position), starts)
    counts -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def _checked_size(size: object) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, list | tuple) else ()
    is_pair = len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)
    if not is_pair or sides[0] * sides[1] > MAX_FRAME_PIXELS:
        raise UsageError(
            f"RLE size: found {str(size)[:80]}, expected [H, W] of 1 to {MAX_FRAME_PIXELS:,} pixels"
        )
    return sides[0], sides[1]


def _checked_counts(rle_counts: object, num_pixels: int) -> NDArray[np.int64]:
    """Return run lengths that are not negative and add up to `num_pixels`."""
    if isinstance(rle_counts, str | bytes) and len(rle_counts) <= _MAX_GROUPS * (num_pixels + 1):
        if isinstance(rle_counts, str):
            if not rle_counts.isascii():
                raise UsageError("RLE counts: found non-ASCII text, expected '0' to 'o' only")
            rle_counts = rle_counts.encode("ascii")
        counts = _counts_from_text(rle_counts)
    elif isinstance(rle_counts, list) and len(rle_counts) <= num_pixels + 1:
        if not all(type(count) is int and 0 <= count <= num_pixels for count in rle_counts):
            raise UsageError(f"RLE counts: expected whole numbers from 0 to {num_pixels}")
        counts = np.array(rle_counts, np.int64)
    else:
        raise UsageError(
            f"RLE counts: found {type(rle_counts).__name__}, expected str, bytes or a list of at "
            f"most {num_pixels + 1} runs"
        )
    # Each run before their sum, which 64 bits might not hold.
    is_in_range = bool(np.all((counts >= 0) & (counts <= num_pixels)))
    runs = f"runs of {counts.sum()} pixels together" if is_in_range else "a run out of range"
    if not is_in_range or counts.sum() != num_pixels:
        raise UsageError(f"RLE counts: found {runs}, expected {num_pixels}, the size given")
    return counts
