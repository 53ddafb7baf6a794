"""Scenes of the slice `track`: two objects that only their past tells apart."""

from dataclasses import replace

from refsam_bench.synthetic import cast, paths
from refsam_bench.synthetic.draws import Draws
from refsam_bench.synthetic.scene import Fade, Keyframe, SceneObject

_WANDER = (0.12, 1.3)


def twins_among_others(
    draws: Draws, count: int, view_hw: tuple[float, float]
) -> list[SceneObject] | None:
    """Return twins and, beside them, others that share a colour with them and a shape with none.

    The twins exchange sides or sizes, or both lose the colour by which they differ. None when the
    objects find no place.
    """
    shapes, colours = cast.shape_pool(draws, count - 1), cast.colour_pool(draws, 3)
    patterns = cast.pattern_pool(draws)
    limit = cast.largest_radius(count)
    twin = SceneObject(0, shapes[0], colours[0], draws.pick(patterns), (), cast.tilt(draws))
    change = draws.pick(("sides", "heights", "sizes", "colours"))
    if change == "sizes":
        twins = _exchange_sizes(draws, twin, view_hw, limit)
    elif change == "colours":
        twins = _lose_colours(draws, twin, colours, view_hw, limit)
    else:
        twins = _pass_each_other(draws, twin, view_hw, limit, upright=change == "heights")
    if twins is None:
        return None
    starts = tuple(item.pose_at(0.0) for item in twins)
    poses = cast.places(draws, cast.even_radii(draws, count - 2), view_hw, taken=starts)
    if poses is None:
        return None
    others = [
        SceneObject(
            0,
            shapes[1 + rank],
            # Two colours take turns: also when the twins differ in colour, each has a companion.
            colours[rank % 2],
            draws.pick(patterns),
            paths.wander(draws, pose, view_hw, *_WANDER),
            cast.tilt(draws),
        )
        for rank, pose in enumerate(poses)
    ]
    # Twins lie in front: of two that come back into sight nobody could tell which is which.
    return [*others, *draws.shuffled(twins)]


def _pass_each_other(
    draws: Draws,
    twin: SceneObject,
    view_hw: tuple[float, float],
    limit: float,
    *,
    upright: bool,
) -> list[SceneObject]:
    """Let the twins exchange sides, or top and bottom, in lanes beside each other."""
    length, breadth = view_hw if upright else view_hw[::-1]
    radius = draws.between(cast.SMALLEST_RADIUS, limit)
    gap = radius * draws.between(1.0, 1.4)
    lane = draws.between(radius + gap, breadth - radius - gap)
    twins = []
    for across, ends in ((lane - gap, (0.18, 0.82)), (lane + gap, (0.82, 0.18))):
        path = []
        for time, end in zip((0.0, draws.between(0.7, 0.9)), ends, strict=True):
            along = paths.inside((end + draws.between(-0.06, 0.06)) * length, radius, length)
            x, y = (across, along) if upright else (along, across)
            path.append(Keyframe(time, x, y, radius))
        twins.append(replace(twin, keyframes=tuple(path)))
    return twins


def _exchange_sizes(
    draws: Draws, twin: SceneObject, view_hw: tuple[float, float], limit: float
) -> list[SceneObject] | None:
    """Let one twin grow to the size of the other while that one shrinks."""
    small, large = cast.SMALLEST_RADIUS, limit
    poses = cast.places(draws, [large, large], view_hw)
    if poses is None:
        return None
    done = draws.between(0.7, 0.9)
    return [
        replace(
            twin,
            keyframes=(
                Keyframe(0.0, pose.x, pose.y, before),
                Keyframe(done, pose.x, pose.y, after),
            ),
        )
        for pose, before, after in zip(poses, (small, large), (large, small), strict=True)
    ]


def _lose_colours(
    draws: Draws, twin: SceneObject, colours: list[str], view_hw: tuple[float, float], limit: float
) -> list[SceneObject] | None:
    """Give the twins two colours and let both turn to the same third one."""
    radius = draws.between(cast.SMALLEST_RADIUS, limit)
    poses = cast.places(draws, [radius, radius], view_hw)
    if poses is None:
        return None
    start = draws.between(0.1, 0.25)
    fade = Fade(colours[2], start, start + 0.15)
    return [
        replace(
            twin,
            colour=colour,
            fade=fade,
            keyframes=paths.wander(draws, pose, view_hw, 0.25, 1.0),
        )
        for colour, pose in zip(colours[:2], poses, strict=True)
    ]
