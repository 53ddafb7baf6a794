"""Synthetic videos with expressions, made on the fly from a seed and an index."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from refsam_bench.synthetic.compose import SLICES, Slice, compose
from refsam_bench.synthetic.draws import Draws
from refsam_bench.synthetic.language.grammar import sentence
from refsam_bench.synthetic.language.meaning import Meaning
from refsam_bench.synthetic.language.naming import has_distractors, meaning_of
from refsam_bench.synthetic.render import canvas_of, render_frame
from refsam_bench.synthetic.scene import Scene
from refsam_trt.errors import InternalError, UsageError

Split = Literal["train", "tune", "evaluate"]

TUNE_SEED: Final = 890_000
EVALUATE_SEED: Final = 900_000
NUM_FRAMES: Final = 16
SIZE_HW: Final = (256, 256)

_SMALLEST_SIDE_PX: Final = 64
_LONGEST_ASPECT: Final = 3.0
_ATTEMPTS: Final = 2000
# What independent streams of draws are for: the first number of their key after that of the slice.
_SCENE, _BACKDROP, _WORDS, _NOISE = range(4)


@dataclass(frozen=True)
class Expression:
    """A text of a slice that names one object, and what it means."""

    text: str
    object_id: int
    slice: Slice
    meaning: Meaning


@dataclass(frozen=True)
class SyntheticVideo:
    """Frames, masks and expressions; the arrays belong to the caller.

    frames: uint8 [T, H, W, 3], RGB. label_map: uint8 [T, H, W], 0 = no object, k = object k.
    frame_indices: which frames of the clip these are. amodal_px: int64 [T, K], pixels that object
    k + 1 would cover if nothing were in front of it; 0 when it is out of the frame. expressions:
    first those of the named target, then those of its siblings; all of one object stand together.
    """

    seed: int
    index: int
    slice: Slice
    scene: Scene
    frames: npt.NDArray[np.uint8]
    label_map: npt.NDArray[np.uint8]
    frame_indices: tuple[int, ...]
    amodal_px: npt.NDArray[np.int64]
    expressions: tuple[Expression, ...]

    def mask(self, object_id: int) -> npt.NDArray[np.bool_]:
        """Return where this object is visible, bool [T, H, W]."""
        return np.equal(self.label_map, object_id)


def split_of(seed: int) -> Split:
    """Return what a seed may be used for.

    Raises:
        UsageError: The seed is negative.
    """
    if seed < 0:
        raise UsageError(f"seed {seed} is negative: give 0 or more (train below {TUNE_SEED})")
    if seed < TUNE_SEED:
        return "train"
    return "tune" if seed < EVALUATE_SEED else "evaluate"


def generate(
    seed: int,
    index: int,
    *,
    slice: Slice,
    num_frames: int = NUM_FRAMES,
    size_hw: tuple[int, int] = SIZE_HW,
    frame_indices: Sequence[int] | None = None,
    texts_per_object: int = 1,
) -> SyntheticVideo:
    """Make one video. The same arguments give the same bytes on every machine.

    The scene depends on seed, index, slice and aspect ratio only, so frame 0 is the same for every
    number of frames.

    Args:
        seed: 0 or more; `split_of` says what for.
        index: Which video of the seed, 0 or more.
        slice: What its expressions are about, one of `SLICES`.
        num_frames: Length of the clip; its motion is spread over all of them.
        size_hw: Height and width in pixels, each 64 or more, one at most three times the other.
        frame_indices: Which frames to paint, in this order; None means all of the clip.
        texts_per_object: How many expressions each named object gets. They mean the same.

    Raises:
        UsageError: An argument is out of its range; the text says which and what to give.
    """
    indices = tuple(range(num_frames)) if frame_indices is None else tuple(frame_indices)
    _check(seed, index, slice, num_frames, size_hw, indices, texts_per_object)
    key = SLICES.index(slice)
    scene, meanings = _named_scene(Draws(seed, index, key, _SCENE), slice, size_hw)
    canvas = canvas_of(scene, Draws(seed, index, key, _BACKDROP), size_hw)
    frames = np.empty((len(indices), *size_hw, 3), np.uint8)
    label_map = np.empty((len(indices), *size_hw), np.uint8)
    amodal_px = np.empty((len(indices), len(scene.objects)), np.int64)
    for row, frame_index in enumerate(indices):
        noise = Draws(seed, index, key, _NOISE, frame_index).noise(3, *size_hw)
        time = frame_index / max(num_frames - 1, 1)
        painted = render_frame(scene, canvas, noise, time, size_hw)
        frames[row], label_map[row], amodal_px[row] = painted
    texts = {number: Draws(seed, index, key, _WORDS, number) for number in meanings}
    expressions = tuple(
        Expression(_text(texts[number], scene, meaning, slice), number, slice, meaning)
        for number, meaning in meanings.items()
        for _ in range(texts_per_object)
    )
    return SyntheticVideo(
        seed, index, slice, scene, frames, label_map, indices, amodal_px, expressions
    )


def _named_scene(
    draws: Draws, name: Slice, size_hw: tuple[int, int]
) -> tuple[Scene, dict[int, Meaning]]:
    """Return a scene and what names its objects: the target first, then at least one sibling."""
    short_px = min(size_hw)
    view_hw = (size_hw[0] / short_px, size_hw[1] / short_px)
    for _ in range(_ATTEMPTS):
        scene = compose(draws, name, view_hw)
        if scene is None:
            continue
        named = {item.object_id: meaning_of(draws, scene, item, name) for item in scene.objects}
        meanings = {number: meaning for number, meaning in named.items() if meaning is not None}
        targets = [
            number for number in meanings if has_distractors(scene, scene.objects[number - 1])
        ]
        if targets and len(meanings) > 1:
            target = draws.pick(targets)
            return scene, {target: meanings.pop(target), **meanings}
    raise InternalError(f"no scene of slice {name} in {_ATTEMPTS} attempts for size {size_hw}")


def _text(draws: Draws, scene: Scene, meaning: Meaning, name: Slice) -> str:
    group_size = sum(meaning.kind.fits(item, 0.0) for item in scene.objects)
    return sentence(draws, meaning, name, group_size)


def _check(
    seed: int,
    index: int,
    name: str,
    num_frames: int,
    size_hw: tuple[int, int],
    indices: tuple[int, ...],
    texts_per_object: int,
) -> None:
    """Refuse arguments of `generate` that are out of range."""
    split_of(seed)
    if index < 0:
        raise UsageError(f"index {index} is negative: give 0 or more")
    if name not in SLICES:
        raise UsageError(f"unknown slice {name!r}: give one of {', '.join(SLICES)}")
    if num_frames < 1 or texts_per_object < 1:
        raise UsageError(
            f"num_frames {num_frames}, texts_per_object {texts_per_object}: give 1 or more of each"
        )
    if min(size_hw) < _SMALLEST_SIDE_PX or max(size_hw) > _LONGEST_ASPECT * min(size_hw):
        raise UsageError(
            f"size_hw {size_hw}: give a height and a width of {_SMALLEST_SIDE_PX} pixels or more,"
            f" the longer at most {_LONGEST_ASPECT:.0f} times the shorter"
        )
    outside = [number for number in indices if not 0 <= number < num_frames]
    if outside or not indices:
        raise UsageError(
            f"frame_indices {list(indices)}: give at least one, each from 0 to {num_frames - 1}"
        )
