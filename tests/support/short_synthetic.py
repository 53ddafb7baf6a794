"""Synthetic videos of a few frames: what is asked of most of them does not depend on how many."""

import pytest

from refsam_bench.datasets import synthetic
from refsam_bench.synthetic import Slice, SyntheticVideo, generate


def shorten(patch: pytest.MonkeyPatch, num_frames: int) -> None:
    """Make every synthetic video of a data set so many frames long."""

    def short(seed: int, index: int, *, slice: Slice) -> SyntheticVideo:
        return generate(seed, index, slice=slice, num_frames=num_frames)

    patch.setattr(synthetic, "generate", short)
