"""What an expression means, and which objects of a scene it fits.

The same evaluator chooses expressions and checks them in the tests. Words are not its business.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from refsam_bench.synthetic.compose import Slice
from refsam_bench.synthetic.scene import Pose, Scene, SceneObject

# An object that gets this far along a direction moves in that direction.
_CLEAR_STEP: Final = 0.16

# When a clip is looked at to judge motion, and whether an expression stays true.
CLIP_TIMES: Final = tuple(step / 8 for step in range(9))


@dataclass(frozen=True)
class Kind:
    """What a noun phrase says about an object; None says nothing."""

    shape: str | None = None
    colour: str | None = None
    pattern: str | None = None

    def fits(self, item: SceneObject, time: float) -> bool:
        """Return whether the object is of this kind at this time."""
        return (
            self.shape in (None, item.shape)
            and self.pattern in (None, item.pattern)
            and (self.colour is None or self.colour == item.colour_at(time))
        )


@dataclass(frozen=True)
class Meaning:
    """What an expression says: a kind, and possibly a measure that singles one of its kind out.

    `measure` names an entry of `MEASURES`; `anchor` is what a relation refers to.
    """

    kind: Kind
    measure: str | None = None
    anchor: Kind | None = None


# (scene, object, what it is related to or the object itself, time) -> how much it fits.
Score = Callable[[Scene, SceneObject, SceneObject, float], float]


@dataclass(frozen=True)
class Measure:
    """How a word singles out objects: by a score that exceeds a threshold, or that of all others.

    `threshold` None means superlative: the score must exceed those of all others of the kind.
    `margin` is the doubt about it: scores that far from the bar fit clearly, or clearly not.
    """

    slice: Slice
    score: Score
    margin: float
    threshold: float | None = None


def _place(x: float, y: float) -> Score:
    """Return the score of being far along (x, y), in parts of the frame from its centre."""

    def score(scene: Scene, item: SceneObject, anchor: SceneObject, time: float) -> float:
        pose = item.pose_at(time)
        return x * (pose.x / scene.view_hw[1] - 0.5) + y * (pose.y / scene.view_hw[0] - 0.5)

    return score


def _centredness(scene: Scene, item: SceneObject, anchor: SceneObject, time: float) -> float:
    pose = item.pose_at(time)
    return -max(abs(pose.x / scene.view_hw[1] - 0.5), abs(pose.y / scene.view_hw[0] - 0.5))


def _size(sign: float) -> Score:
    def score(scene: Scene, item: SceneObject, anchor: SceneObject, time: float) -> float:
        return sign * math.log(item.pose_at(time).radius)

    return score


def _distance(first: Pose, second: Pose) -> float:
    return math.sqrt((first.x - second.x) ** 2 + (first.y - second.y) ** 2)


def _side(x: float, y: float) -> Score:
    """Return the cosine between (x, y) and the way from the anchor to the object."""

    def score(scene: Scene, item: SceneObject, anchor: SceneObject, time: float) -> float:
        here, there = item.pose_at(time), anchor.pose_at(time)
        way = x * (here.x - there.x) + y * (here.y - there.y)
        return way / max(_distance(here, there), 1e-6)

    return score


def _nearness(scene: Scene, item: SceneObject, anchor: SceneObject, time: float) -> float:
    return -_distance(item.pose_at(time), anchor.pose_at(time))


def _heading(x: float, y: float) -> Score:
    """Return how far the object gets along (x, y), less how far it gets off that way."""

    def score(scene: Scene, item: SceneObject, anchor: SceneObject, time: float) -> float:
        start = item.pose_at(0.0)
        steps = [(p.x - start.x, p.y - start.y) for p in map(item.pose_at, CLIP_TIMES)]
        gains = [x * right + y * down - abs(x * down - y * right) for right, down in steps]
        farthest = max(gains)
        # Whoever comes back moves that way in a sense: neither clearly so, nor clearly not.
        return farthest if gains[-1] > 0.5 * farthest else min(farthest, _CLEAR_STEP)

    return score


def _stillness(scene: Scene, item: SceneObject, anchor: SceneObject, time: float) -> float:
    start = item.pose_at(0.0)
    moved = max(_distance(start, item.pose_at(later)) for later in CLIP_TIMES)
    # Whoever sees an object grow would not say that it stands still.
    return -moved - abs(math.log(item.pose_at(1.0).radius / start.radius))


def _growth(sign: float) -> Score:
    def score(scene: Scene, item: SceneObject, anchor: SceneObject, time: float) -> float:
        return sign * math.log(item.pose_at(1.0).radius / item.pose_at(0.0).radius)

    return score


def _absence(scene: Scene, item: SceneObject, anchor: SceneObject, time: float) -> float:
    return sum(scene.has_left(item, later) for later in CLIP_TIMES) / len(CLIP_TIMES)


_SIDES: Final = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "top": (0.0, -1.0), "bottom": (0.0, 1.0)}

MEASURES: Final[dict[str, Measure]] = {
    "largest": Measure("size", _size(1.0), 0.2),
    "smallest": Measure("size", _size(-1.0), 0.2),
    "middle": Measure("position", _centredness, 0.06, -0.16),
    **{f"{side}most": Measure("position", _place(*way), 0.1) for side, way in _SIDES.items()},
    **{side: Measure("position", _place(*way), 0.08, 0.0) for side, way in _SIDES.items()},
    "left of": Measure("relation", _side(-1.0, 0.0), 0.16, 0.64),
    "right of": Measure("relation", _side(1.0, 0.0), 0.16, 0.64),
    "above": Measure("relation", _side(0.0, -1.0), 0.16, 0.64),
    "below": Measure("relation", _side(0.0, 1.0), 0.16, 0.64),
    "nearest": Measure("relation", _nearness, 0.12),
    "moves left": Measure("motion", _heading(-1.0, 0.0), 0.08, _CLEAR_STEP),
    "moves right": Measure("motion", _heading(1.0, 0.0), 0.08, _CLEAR_STEP),
    "moves up": Measure("motion", _heading(0.0, -1.0), 0.08, _CLEAR_STEP),
    "moves down": Measure("motion", _heading(0.0, 1.0), 0.08, _CLEAR_STEP),
    "stays": Measure("motion", _stillness, 0.05, -0.07),
    "grows": Measure("motion", _growth(1.0), 0.2, 0.3),
    "shrinks": Measure("motion", _growth(-1.0), 0.2, 0.3),
    "leaves": Measure("motion", _absence, 0.08, 0.12),
}


def fits(
    meaning: Meaning, scene: Scene, time: float = 0.0, strictness: float = 0.0
) -> frozenset[int]:
    """Return the ids of the objects in view that the meaning fits at this time.

    Args:
        meaning: What is said. Motion is judged over the clip, whatever the time.
        scene: What it is said about.
        time: When, from 0 to 1.
        strictness: -1 admits doubtful objects, 1 only those that fit beyond doubt.
    """
    seen = [item for item in scene.objects if scene.is_in_view(item, time)]
    group = [item for item in seen if meaning.kind.fits(item, time)]
    if meaning.measure is None:
        return frozenset(item.object_id for item in group)
    anchor = None
    if meaning.anchor is not None:
        anchors = [item for item in seen if meaning.anchor.fits(item, time)]
        if len(anchors) != 1:
            return frozenset()
        anchor = anchors[0]
        group = [item for item in group if item is not anchor]
    measure = MEASURES[meaning.measure]
    scores = {item.object_id: measure.score(scene, item, anchor or item, time) for item in group}
    return frozenset(
        number
        for number, score in scores.items()
        if score >= _bar(measure, scores, number) + strictness * measure.margin
    )


def _bar(measure: Measure, scores: dict[int, float], number: int) -> float:
    """Return what the object's score must reach: the threshold, or the best of the others."""
    if measure.threshold is not None:
        return measure.threshold
    return max((score for other, score in scores.items() if other != number), default=-math.inf)


def names_only(meaning: Meaning, scene: Scene, item: SceneObject, name: Slice) -> bool:
    """Return whether this object and no other is named, beyond doubt, as the slice demands.

    In the first frame (`motion`: over the clip) the object must fit clearly and every other one
    clearly not. In `track` it must not fit at the end, not even in doubt; in all other slices it
    fits alone whenever it is in view.
    """
    only = frozenset((item.object_id,))
    if fits(meaning, scene, 0.0, 1.0) != only or fits(meaning, scene, 0.0, -1.0) != only:
        return False
    if name == "motion":
        return True
    if name == "track":
        return item.object_id not in fits(meaning, scene, 1.0, -1.0)
    seen = (time for time in CLIP_TIMES if scene.is_in_view(item, time))
    return all(fits(meaning, scene, time) == only for time in seen)
