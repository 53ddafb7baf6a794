"""Exchange the saved track tokens of two twins: their masks must change places.

In a `track` video two objects differ only by their past: at the end nothing but the track token
tells which is which. So a token from another twin must make an expression follow that twin.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refsam_bench.synthetic import Expression, SyntheticVideo, generate
from refsam_export.parity.compare import mask_iou
from refsam_trt.errors import UsageError
from refsam_trt.session.engine import Engine
from refsam_trt.session.state_file import read_state, write_state

EXCHANGED_AFTER = 12
"""Frames before the exchange, of 16: by then the twins have changed places, sizes or colour."""


@dataclass(frozen=True)
class Exchange:
    """What became of one video.

    kept: without an exchange both masks are on the object of their own expression. exchanged: with
    it both masks are where the other's are without it: whoever does not heed tokens has the same
    masks twice and exchanges nothing. Judged by the mean IoU over the frames after the exchange.
    """

    name: str
    texts: tuple[str, str]
    kept: bool
    exchanged: bool


@dataclass(frozen=True)
class Exchanges:
    """What became of the videos with named twins, at least one, among `num_videos` of a seed."""

    seed: int
    num_videos: int
    videos: tuple[Exchange, ...]

    @property
    def kept(self) -> float:
        """Share of the videos, 0 to 1."""
        return sum(video.kept for video in self.videos) / len(self.videos)

    @property
    def exchanged(self) -> float:
        """Share of the videos, 0 to 1."""
        return sum(video.exchanged for video in self.videos) / len(self.videos)

    def to_json(self) -> dict[str, Any]:
        """Return the shares, and what became of each video."""
        return {
            "dataset": "synthetic",
            "seed": self.seed,
            "num_videos": self.num_videos,
            "num_with_named_twins": len(self.videos),
            "kept": self.kept,
            "exchanged": self.exchanged,
            "videos": {
                v.name: {"texts": list(v.texts), "kept": v.kept, "exchanged": v.exchanged}
                for v in self.videos
            },
        }


def exchange_tokens(
    engine: Engine, seed: int, num_videos: int, progress: Callable[[], None]
) -> Exchanges:
    """Try videos 0 to `num_videos - 1` of the slice `track` that have named twins.

    Raises:
        UsageError: in none of the videos both twins have an expression of their own.
    """
    exchanges = []
    for index in range(num_videos):
        video = generate(seed, index, slice="track")
        if twins := named_twins(video):
            exchanges.append(_exchange(engine, video, twins))
        progress()
    if not exchanges:
        raise UsageError(f"seed {seed}: no named twins in {num_videos} videos; give more videos")
    return Exchanges(seed, num_videos, tuple(exchanges))


def named_twins(video: SyntheticVideo) -> tuple[Expression, Expression] | None:
    """Return expressions of two objects that look alike in the end, or None if there are none."""
    looks: dict[tuple[str, str | None, str], Expression] = {}
    for expression in video.expressions:
        item = video.scene.objects[expression.object_id - 1]
        look = (item.shape, item.colour_at(1.0), item.pattern)
        other = looks.setdefault(look, expression)
        if other.object_id != expression.object_id:
            return other, expression
    return None


def _exchange(
    engine: Engine, video: SyntheticVideo, twins: tuple[Expression, Expression]
) -> Exchange:
    with tempfile.TemporaryDirectory(prefix="refsam-exchange-") as folder:
        state = Path(folder) / "state.safetensors"
        with engine.open_video() as session:
            for twin in twins:
                session.add_expression(twin.text)
            for frame in video.frames[:EXCHANGED_AFTER]:
                session.step(frame)
            session.save_state(state)
        masks = _continued(engine, state, video)
        saved, tensors = read_state(state)
        write_state(state, saved, {name: rows[::-1] for name, rows in tensors.items()})
        crossed = _continued(engine, state, video)
    true = np.stack([video.mask(twin.object_id)[EXCHANGED_AFTER:] for twin in twins])
    name = f"{video.slice}-{video.index:05d}"
    texts = (twins[0].text, twins[1].text)
    return Exchange(name, texts, _each_nearer(masks, true), _each_nearer(crossed, masks[::-1]))


def _continued(engine: Engine, state: Path, video: SyntheticVideo) -> NDArray[np.bool_]:
    """Return the masks, bool [2, T, H, W], of the frames after those of a saved session."""
    with engine.open_video() as session:
        session.load_state(state)
        steps = [session.step(frame) for frame in video.frames[EXCHANGED_AFTER:]]
    return np.stack([[step[row].mask for step in steps] for row in range(2)])


def _each_nearer(masks: NDArray[np.bool_], own: NDArray[np.bool_]) -> bool:
    """Say whether both masks are nearer to their own than to the other's, all [2, T, H, W]."""
    return all(
        _mean_iou(masks[row], own[row]) > _mean_iou(masks[row], own[1 - row]) for row in (0, 1)
    )


def _mean_iou(masks: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    return float(np.mean([mask_iou(*pair) for pair in zip(masks, true, strict=True)]))
