"""Find a meaning that names an object of a scene, for the slice asked for."""

from refsam_bench.synthetic.compose import Slice
from refsam_bench.synthetic.draws import Draws
from refsam_bench.synthetic.language.meaning import MEASURES, Kind, Meaning, names_only
from refsam_bench.synthetic.scene import Scene, SceneObject

_TRACK_MEASURES = ("left", "right", "top", "bottom", "largest", "smallest")


def has_distractors(scene: Scene, item: SceneObject) -> bool:
    """Return whether another object has the same shape and another one the same colour at first.

    One object can be both: a look-alike of another size, or a twin.
    """
    others = [other for other in scene.objects if other is not item]
    same_shape = {other.object_id for other in others if other.shape == item.shape}
    same_colour = {other.object_id for other in others if other.colour == item.colour}
    return bool(same_shape) and bool(same_colour)


def meaning_of(draws: Draws, scene: Scene, item: SceneObject, name: Slice) -> Meaning | None:
    """Return a meaning of this slice that names only this object, or None if there is none."""
    for meaning in draws.shuffled(_candidates(scene, item, name)):
        if names_only(meaning, scene, item, name):
            return meaning
    return None


def _candidates(scene: Scene, item: SceneObject, name: Slice) -> list[Meaning]:
    if name == "attribute":
        return [Meaning(kind) for kind in _kinds(item, with_pattern=True)]
    kinds = [kind for kind in _kinds(item) if _num_fitting(scene, kind) > 1]
    if name == "track":
        fading = [Meaning(Kind(item.shape, item.colour))] if item.fade is not None else []
        return fading + [
            Meaning(kind, measure) for kind in kinds if kind.shape for measure in _TRACK_MEASURES
        ]
    measures = [measure for measure, entry in MEASURES.items() if entry.slice == name]
    if name == "size":
        kinds = [kind for kind in kinds if kind.shape]
    if name == "relation":
        return [
            Meaning(kind, measure, anchor)
            for anchor in _anchors(scene, item)
            for kind in kinds
            if _num_fitting(scene, kind, apart_from=anchor) > 1
            for measure in measures
        ]
    return [Meaning(kind, measure) for kind in kinds for measure in measures]


def _kinds(item: SceneObject, *, with_pattern: bool = False) -> list[Kind]:
    """Return the noun phrases that fit the object in the first frame, from vague to exact."""
    patterns = (None, item.pattern) if with_pattern else (None,)
    return [
        Kind(shape, colour, pattern)
        for pattern in patterns
        for shape in (None, item.shape)
        for colour in (None, item.colour)
    ]


def _num_fitting(scene: Scene, kind: Kind, apart_from: Kind | None = None) -> int:
    return sum(
        kind.fits(item, 0.0) and not (apart_from and apart_from.fits(item, 0.0))
        for item in scene.objects
    )


def _anchors(scene: Scene, item: SceneObject) -> list[Kind]:
    """Return the noun phrases, with a shape, that name exactly one of the other objects."""
    kinds = {
        kind
        for other in scene.objects
        if other is not item
        for kind in (Kind(other.shape), Kind(other.shape, other.colour))
        if _num_fitting(scene, kind) == 1 and not kind.fits(item, 0.0)
    }
    return sorted(kinds, key=lambda kind: (kind.shape or "", kind.colour or ""))
