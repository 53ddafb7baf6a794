"""Which objects a scene has, how large they are and where they stand in the first frame."""

from typing import Final

from refsam_bench.synthetic.draws import Draws
from refsam_bench.synthetic.palette import COLOURS, CONFUSABLE_COLOURS
from refsam_bench.synthetic.scene import Pose, SceneObject
from refsam_bench.synthetic.shapes import CONFUSABLE_SHAPES, OUTLINES
from refsam_bench.synthetic.texture import PATTERNS

# 38 pixels across where the short side has 256; the largest have 72 to 82.
SMALLEST_RADIUS: Final = 0.075
_GAP: Final = 0.02


def largest_radius(count: int) -> float:
    """Return the largest radius that lets this many objects stand beside each other."""
    return 0.2 - 0.01 * count


def pool(
    draws: Draws, names: tuple[str, ...], confusable: frozenset[frozenset[str]], count: int
) -> list[str]:
    """Return this many of the names, no two of them confusable."""
    kept: list[str] = []
    for name in draws.shuffled(names):
        clash = any(frozenset((name, other)) in confusable for other in kept)
        if len(kept) < count and not clash:
            kept.append(name)
    return kept


def shape_pool(draws: Draws, count: int) -> list[str]:
    """Return this many shapes that cannot be mistaken for each other."""
    return pool(draws, tuple(OUTLINES), CONFUSABLE_SHAPES, count)


def colour_pool(draws: Draws, count: int) -> list[str]:
    """Return this many colours that cannot be mistaken for each other."""
    return pool(draws, tuple(COLOURS), CONFUSABLE_COLOURS, count)


def pattern_pool(draws: Draws) -> list[str]:
    """Return two patterns, or only the plain one."""
    return draws.shuffled(tuple(PATTERNS))[:2] if draws.chance(0.6) else ["plain"]


def mixture(draws: Draws, count: int, num_shapes: int) -> list[SceneObject]:
    """Return objects that share few shapes, colours and patterns, so that each has look-alikes."""
    shapes = shape_pool(draws, num_shapes)
    colours = colour_pool(draws, draws.pick((2, 3)))
    patterns = pattern_pool(draws)
    return [
        SceneObject(
            0, draws.pick(shapes), draws.pick(colours), draws.pick(patterns), (), tilt(draws)
        )
        for _ in range(count)
    ]


def tilt(draws: Draws) -> tuple[float, float]:
    """Return a first and a last tilt of at most 20 degrees: no square looks like a diamond."""
    return draws.between(-0.18, 0.18), draws.between(-0.18, 0.18)


def even_radii(draws: Draws, count: int) -> list[float]:
    """Return radii spread evenly over what is allowed."""
    return [draws.between(SMALLEST_RADIUS, largest_radius(count)) for _ in range(count)]


def distinct_radii(draws: Draws, count: int) -> list[float]:
    """Return radii near three sizes that are easy to tell apart, in random order.

    The largest comes twice, lest the largest object of a scene be too often the one that is named.
    """
    growth = (largest_radius(count) / SMALLEST_RADIUS) ** 0.5
    sizes = [largest_radius(count) / growth ** (rank % 3) for rank in range(count)]
    return [size * draws.between(0.96, 1.04) for size in draws.shuffled(sizes)]


def places(
    draws: Draws, radii: list[float], view_hw: tuple[float, float], taken: tuple[Pose, ...] = ()
) -> list[Pose] | None:
    """Return places in view that touch neither each other nor those taken, or None if none fit."""
    poses = list(taken)
    for radius in radii:
        for _ in range(30):
            x = draws.between(radius + _GAP, view_hw[1] - radius - _GAP)
            y = draws.between(radius + _GAP, view_hw[0] - radius - _GAP)
            if all(
                (x - pose.x) ** 2 + (y - pose.y) ** 2 > (radius + pose.radius + _GAP) ** 2
                for pose in poses
            ):
                poses.append(Pose(x, y, radius))
                break
        else:
            return None
    return poses[len(taken) :]
