"""Training clips from synthetic videos; only seeds that evaluation never uses."""

from __future__ import annotations

import numpy as np

from refsam_bench.synthetic import Expression, SyntheticVideo, generate
from refsam_bench.synthetic.language.meaning import fits
from refsam_bench.synthetic.video import NUM_FRAMES, TUNE_SEED
from refsam_train.data.cells import shown_objects
from refsam_train.data.clips import Clip
from refsam_train.data.crowds import crowd_clip
from refsam_train.recipe import Data
from refsam_trt.errors import UsageError

# Expressions that are true from the first frame on, but not of any frame by itself.
_FROM_THE_START = frozenset({"motion", "track"})
_PHRASES_PER_OBJECT = 2


class SyntheticClips:
    """Draws clips from synthetic videos as the recipe says.

    Raises:
        UsageError: the weight of a slice is not above 0.
    """

    def __init__(self, data: Data) -> None:
        if not data.slices or min(data.slices.values()) <= 0.0:
            raise UsageError(f"data.slices {data.slices}: expected weights above 0")
        self._data = data
        self._slices = tuple(data.slices)
        self._shares = np.array(list(data.slices.values())) / sum(data.slices.values())

    def clip(self, key: tuple[int, ...], num_frames: int) -> Clip:
        """Return the clip of this key; seeds stay below those that tune and evaluate."""
        rng = np.random.default_rng(key)
        name = self._slices[rng.choice(len(self._slices), p=self._shares)]
        seed, index = int(rng.integers(TUNE_SEED)), int(rng.integers(1 << 20))
        if num_frames == 1 and rng.random() < self._data.crowd_share:
            return crowd_clip(seed, index, self._data.expressions_per_clip)
        frames = self._frames(rng, name, num_frames)
        if name == "track" and self._data.late_starts:
            begin = generate(seed, index, slice="track", frame_indices=(0,))
            frames = _later(rng, frames, begin)
        video = generate(
            seed,
            index,
            slice=name,  # type: ignore[arg-type]
            frame_indices=frames,
            texts_per_object=_PHRASES_PER_OBJECT,
        )
        expressions = self._expressions(rng, video.expressions)
        masks = np.stack([video.mask(expression.object_id) for expression in expressions])
        texts = tuple(expression.text for expression in expressions)
        times = [frame / (NUM_FRAMES - 1) for frame in video.frame_indices]
        shown = shown_objects(video.scene, video.label_map, times)
        return Clip(video.frames, masks, texts, f"synthetic {name} {seed}/{index}", shown)

    def _frames(self, rng: np.random.Generator, name: str, num_frames: int) -> tuple[int, ...]:
        """Return which frames of a video of the usual length: evenly spaced, in order."""
        longest = (NUM_FRAMES - 1) // max(num_frames - 1, 1)
        stride = 1 + int(rng.integers(min(self._data.max_stride, longest)))
        last_start = 0 if name in _FROM_THE_START else NUM_FRAMES - 1 - stride * (num_frames - 1)
        start = int(rng.integers(last_start + 1))
        return tuple(start + stride * step for step in range(num_frames))

    def _expressions(
        self, rng: np.random.Generator, offered: tuple[Expression, ...]
    ) -> list[Expression]:
        """Return some of the expressions: one of every object before a second one of any."""
        shuffled = [offered[i] for i in rng.permutation(len(offered))]
        firsts = {expression.object_id: expression for expression in reversed(shuffled)}
        in_turn = sorted(shuffled, key=lambda e: firsts[e.object_id] is not e)  # keeps their order
        return in_turn[: self._data.expressions_per_clip]


def _later(
    rng: np.random.Generator, frames: tuple[int, ...], video: SyntheticVideo
) -> tuple[int, ...]:
    """Return the frames, moved on by some steps over which all expressions remain true."""
    latest = 0
    while latest + frames[-1] + 1 < NUM_FRAMES and _still_true(video, latest + 1):
        latest += 1
    start = int(rng.integers(latest + 1))
    return tuple(start + frame for frame in frames)


def _still_true(video: SyntheticVideo, frame: int) -> bool:
    """Return whether every expression names its object and no other, beyond doubt, in a frame."""
    time = frame / (NUM_FRAMES - 1)
    return all(
        fits(expression.meaning, video.scene, time, strictness) == {expression.object_id}
        for expression in video.expressions
        for strictness in (1.0, -1.0)
    )
