"""Draw a scene for a slice: which objects, how they move, and how the picture is taken."""

from dataclasses import replace
from typing import Final, Literal, get_args

from refsam_bench.synthetic import cast, paths, twins
from refsam_bench.synthetic.draws import Draws
from refsam_bench.synthetic.scene import Look, Pole, Pose, Scene, SceneObject

Slice = Literal["attribute", "size", "position", "relation", "motion", "track"]
SLICES: Final[tuple[Slice, ...]] = get_args(Slice)

# How far objects wander (per place) and by which factor their size changes. Expressions about size
# and place must stay true, so what they speak of changes little.
_WANDER: Final[dict[Slice, tuple[float, float]]] = {
    "attribute": (0.3, 1.5),
    "size": (0.25, 1.1),
    "position": (0.09, 1.35),
    "relation": (0.09, 1.35),
}
# Every object has room for it in at least one direction: half the frame less the largest radius.
_SHORTEST_STEP: Final = 0.3


def compose(draws: Draws, name: Slice, view_hw: tuple[float, float]) -> Scene | None:
    """Return a scene for this slice, or None when what was drawn does not fit into the frame."""
    count = draws.pick((4, 5, 5, 6))
    if name == "track":
        items = twins.twins_among_others(draws, count, view_hw)
    else:
        items = _beside_each_other(draws, count, name, view_hw)
    if items is None:
        return None
    objects = tuple(replace(item, object_id=rank) for rank, item in enumerate(items, start=1))
    return Scene(view_hw, objects, _pole(draws, view_hw), draw_look(draws, name))


def _beside_each_other(
    draws: Draws, count: int, name: Slice, view_hw: tuple[float, float]
) -> list[SceneObject] | None:
    items = cast.mixture(draws, count, 2 if name == "size" else 3)
    radii = cast.distinct_radii if name == "size" else cast.even_radii
    poses = cast.places(draws, radii(draws, count), view_hw)
    if poses is None:
        return None
    leaver = draws.below(count) if draws.chance(0.35) else None
    moved = []
    for rank, (item, start) in enumerate(zip(items, poses, strict=True)):
        if rank == leaver:
            path = paths.away_and_back(draws, start, view_hw)
        elif name == "motion":
            path = _distinct_motion(draws, start, view_hw)
        else:
            path = paths.wander(draws, start, view_hw, *_WANDER[name])
        moved.append(replace(item, keyframes=path))
    return moved


def _distinct_motion(draws: Draws, start: Pose, view_hw: tuple[float, float]) -> paths.Path:
    """Return a motion that has a name of its own: one way, not at all, growing, shrinking."""
    way = draws.below(8)
    if way == 0:
        return paths.still(start)
    if way < 3:
        return paths.zoom(start, view_hw, 1.9 if start.radius < 0.1 else 0.5)
    room = {
        (1, 0): view_hw[1] - start.radius - start.x,
        (-1, 0): start.x - start.radius,
        (0, 1): view_hw[0] - start.radius - start.y,
        (0, -1): start.y - start.radius,
    }
    right, down = draws.pick([step for step, free in room.items() if free > _SHORTEST_STEP])
    length = draws.between(_SHORTEST_STEP, min(room[right, down], 0.45))
    return paths.straight(start, view_hw, (right * length, down * length))


def _pole(draws: Draws, view_hw: tuple[float, float]) -> Pole | None:
    """Return in three of ten scenes a pole that starts outside and crosses most of the frame."""
    if not draws.chance(0.3):
        return None
    width = draws.between(0.05, 0.1)
    ends = (-width, draws.between(0.7, 1.05) * view_hw[1])
    if draws.chance(0.5):
        ends = (view_hw[1] - ends[0], view_hw[1] - ends[1])
    return Pole(*ends, width=width, grey=draws.pick((55.0, 95.0, 190.0)))


def draw_look(draws: Draws, name: Slice) -> Look:
    """Return how the picture of a scene of this slice is taken."""
    # Where motion is the question the camera keeps almost still: motion refers to the frame.
    drift = 0.03 if name == "motion" else 0.25
    return Look(
        drift=(draws.between(-drift, drift), draws.between(-drift, drift)),
        light=(draws.between(0.82, 1.12), draws.between(0.82, 1.12)),
        gradient=(draws.between(-0.2, 0.2), draws.between(-0.2, 0.2)),
        tint=(draws.between(0.95, 1.05), draws.between(0.95, 1.05), draws.between(0.95, 1.05)),
        noise=draws.between(1.0, 8.0),
        blur=draws.below(3),
    )
