"""Answers that need no expression, with true masks: what a model must beat to have listened.

One object is chosen in the first frame, whatever is said, and followed without error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from refsam_bench.synthetic import SyntheticVideo
from refsam_trt.errors import UsageError

Blind = Literal["largest", "centre", "all"]
"""`largest`: most visible pixels in the first frame; `centre`: whose middle is nearest to that of
the first frame; `all`: every object at once."""


def blind_masks(video: SyntheticVideo, blind: Blind) -> Iterator[NDArray[np.bool_]]:
    """Yield the mask [H, W] of every frame.

    Raises:
        UsageError: no such answer.
    """
    if blind not in get_args(Blind):
        raise UsageError(f"no blind answer {blind!r}; answers: {', '.join(get_args(Blind))}")
    if blind == "all":
        return iter(video.label_map > 0)
    choose = _largest if blind == "largest" else _most_central
    return iter(video.mask(choose(video.label_map[0])))


def _largest(label_map: NDArray[np.uint8]) -> int:
    return int(np.bincount(label_map.ravel())[1:].argmax()) + 1


def _most_central(label_map: NDArray[np.uint8]) -> int:
    middle = (np.array(label_map.shape) - 1.0) / 2.0
    seen = [int(number) for number in np.unique(label_map) if number]
    distances = [np.linalg.norm(np.argwhere(label_map == n).mean(0) - middle) for n in seen]
    return seen[int(np.argmin(distances))]
