"""Which clips make up which step: a pure function of recipe, step, micro-batch and process.

That is what makes a resumed run see exactly the data that an uninterrupted one would have seen.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from refsam_train.data.clips import Batch, ClipSource, Collator
from refsam_train.recipe import Recipe


@dataclass(frozen=True)
class Place:
    """Which process of how many this is."""

    rank: int = 0
    world_size: int = 1


class StepBatches(Dataset[list[Batch]]):
    """The micro-batches of every step; item `step` is a list of `accumulate` batches."""

    def __init__(
        self, recipe: Recipe, source: ClipSource, collator: Collator, place: Place
    ) -> None:
        self._recipe = recipe
        self._source = source
        self._collator = collator
        self._place = place
        # Recipes with the same seed shall not see the same data.
        self._salt = int.from_bytes(hashlib.sha256(recipe.name.encode()).digest()[:4], "little")

    def __len__(self) -> int:
        return self._recipe.steps

    def __getitem__(self, step: int) -> list[Batch]:
        """Return the micro-batches of a step, `accumulate` of them."""
        return [self._batch(step, micro) for micro in range(self._recipe.accumulate)]

    def _batch(self, step: int, micro: int) -> Batch:
        data = self._recipe.data
        num_clips, num_frames = data.clips_per_batch, data.num_frames
        if self._is_single_frame(step):
            # As many frames as in a step of clips, so both cost the same.
            num_clips, num_frames = num_clips * num_frames, 1
        first = (micro * self._place.world_size + self._place.rank) * num_clips
        return self._collator(
            [
                self._source.clip((*self._key(step), first + row), num_frames)
                for row in range(num_clips)
            ]
        )

    def _is_single_frame(self, step: int) -> bool:
        """Return whether the step is one of single frames: the same on every process."""
        draw = np.random.default_rng(self._key(step)).random()
        return bool(draw < self._recipe.data.single_frame_share)

    def _key(self, step: int) -> tuple[int, int, int]:
        return self._recipe.seed, self._salt, step


def batches_from(batches: StepBatches, first_step: int, num_workers: int) -> Iterator[list[Batch]]:
    """Yield the batches of `first_step` and all later steps in order, made ahead of time.

    Args:
        batches: of the run.
        first_step: where to begin.
        num_workers: processes that make them; 0 makes each when it is asked for.
    """
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first_step, len(batches)),
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        multiprocessing_context="fork" if num_workers else None,
        worker_init_fn=_start_worker,
    )
    return iter(loader)


def _start_worker(worker: int) -> None:
    # Workers would otherwise take the cores that the training itself computes with.
    torch.set_num_threads(1)
    # Ctrl-C and schedulers signal the whole group: the run decides then, and saves first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
