"""Ways of moving: keyframes from a first pose, each way a function of its own."""

from refsam_bench.synthetic.draws import Draws
from refsam_bench.synthetic.scene import Keyframe, Pose
from refsam_bench.synthetic.shapes import REACH

Path = tuple[Keyframe, ...]

# Objects that stay in view keep this far from the edge of the frame.
_EDGE = 0.01

# Wandering objects do not shrink below 31 pixels across where the short side has 256.
_SMALLEST_RADIUS = 0.06


def inside(value: float, radius: float, length: float) -> float:
    """Return the nearest centre coordinate that keeps an object of this radius within the frame."""
    reach = radius + _EDGE
    return min(max(value, reach), length - reach)


def _to(time: float, x: float, y: float, radius: float, view_hw: tuple[float, float]) -> Keyframe:
    return Keyframe(time, inside(x, radius, view_hw[1]), inside(y, radius, view_hw[0]), radius)


def still(start: Pose) -> Path:
    """Return the path of an object that does not move."""
    return (Keyframe(0.0, start.x, start.y, start.radius),)


def wander(
    draws: Draws, start: Pose, view_hw: tuple[float, float], reach: float, zoom: float
) -> Path:
    """Return a path over one or two further places, each at most `reach` off along x and y.

    Its size changes by a factor of up to `zoom`, either way.
    """
    radius = start.radius * draws.between(1.0, zoom) ** draws.pick((-1, 1))
    radius = max(radius, _SMALLEST_RADIUS)
    path = [Keyframe(0.0, start.x, start.y, start.radius)]
    for time in draws.pick(((1.0,), (draws.between(0.35, 0.65), 1.0))):
        x = path[-1].x + draws.between(-reach, reach)
        y = path[-1].y + draws.between(-reach, reach)
        path.append(_to(time, x, y, start.radius + (radius - start.radius) * time, view_hw))
    return tuple(path)


def zoom(start: Pose, view_hw: tuple[float, float], factor: float) -> Path:
    """Return a path that changes the size by this factor, and the place only to stay in view."""
    first = Keyframe(0.0, start.x, start.y, start.radius)
    return (first, _to(1.0, start.x, start.y, start.radius * factor, view_hw))


def straight(start: Pose, view_hw: tuple[float, float], step: tuple[float, float]) -> Path:
    """Return a path that ends `step` (x, y) from where it starts, as far as the frame allows."""
    first = Keyframe(0.0, start.x, start.y, start.radius)
    return (first, _to(1.0, start.x + step[0], start.y + step[1], start.radius, view_hw))


def away_and_back(draws: Draws, start: Pose, view_hw: tuple[float, float]) -> Path:
    """Return a path out of the frame over its nearest edge, and back to about where it began."""
    reach = start.radius * REACH + 0.03
    exits = (
        (start.x, -reach, start.y),
        (view_hw[1] - start.x, view_hw[1] + reach, start.y),
        (start.y, start.x, -reach),
        (view_hw[0] - start.y, start.x, view_hw[0] + reach),
    )
    _, x, y = min(exits)
    gone, back = draws.between(0.3, 0.4), draws.between(0.55, 0.65)
    return (
        Keyframe(0.0, start.x, start.y, start.radius),
        Keyframe(gone, x, y, start.radius),
        Keyframe(back, x, y, start.radius),
        Keyframe(draws.between(0.85, 0.95), start.x, start.y, start.radius),
    )
