"""Outlines as signed distances: negative inside, 0 on the outline, about 1 per unit of length.

All of them take x and y of points (float32, y downwards, broadcast against each other) in units of
the object's radius, return float32, and use only operations that IEEE 754 rounds exactly.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

# float32 at run time: the annotations of numpy do not tell that Python numbers leave a dtype alone.
Floats = npt.NDArray[np.floating[Any]]

# The farthest point of any outline from the object's centre, in radii: bounds what must be painted.
REACH: Final = 1.2

_HALF_SQRT3: Final = math.sqrt(3.0) / 2.0
_COS36: Final = (1.0 + math.sqrt(5.0)) / 4.0
_SIN36: Final = math.sqrt(10.0 - 2.0 * math.sqrt(5.0)) / 4.0
_COS108: Final = (1.0 - math.sqrt(5.0)) / 4.0
_SIN108: Final = math.sqrt(10.0 + 2.0 * math.sqrt(5.0)) / 4.0
_STAR_INNER: Final = 0.5


def _circle(x: Floats, y: Floats) -> Floats:
    return np.sqrt(x * x + y * y) - 0.95


def _ring(x: Floats, y: Floats) -> Floats:
    return np.abs(np.sqrt(x * x + y * y) - 0.7) - 0.3


def _square(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.abs(x), np.abs(y)) - 0.84


def _triangle(x: Floats, y: Floats) -> Floats:
    y = y - 0.12
    sides = _HALF_SQRT3 * np.abs(x) - 0.5 * y
    return np.maximum(sides, y) - 0.55


def _hexagon(x: Floats, y: Floats) -> Floats:
    side = np.abs(x)
    return np.maximum(_HALF_SQRT3 * np.abs(y) + 0.5 * side, side) - 0.87


def _cross(x: Floats, y: Floats) -> Floats:
    x, y = np.abs(x), np.abs(y)
    lying: Floats = np.maximum(x - 1.0, y - 0.36)
    upright: Floats = np.maximum(x - 0.36, y - 1.0)
    return np.minimum(lying, upright)


def _moon(x: Floats, y: Floats) -> Floats:
    squares = y * y
    full = np.sqrt((x - 0.25) * (x - 0.25) + squares) - 1.0
    bite = 0.8 - np.sqrt((x - 0.72) * (x - 0.72) + squares)
    return np.maximum(full, bite)


def _star(x: Floats, y: Floats) -> Floats:
    side, up = np.abs(x), -y
    # Mirrors at 108 and 36 degrees from the upper tip fold all five tips onto that one.
    for cos, sin in ((_COS108, _SIN108), (_COS36, _SIN36)):
        beyond = 2.0 * np.maximum(side * cos - up * sin, 0.0)
        side, up = side - beyond * cos, up + beyond * sin
    edge_x, edge_up = 1.0 - _STAR_INNER * _COS36, _STAR_INNER * _SIN36
    length = math.sqrt(edge_x * edge_x + edge_up * edge_up)
    return (np.abs(side) * edge_x + (up - 1.0) * edge_up) / length


def _heart(x: Floats, y: Floats) -> Floats:
    x = np.abs(x)
    lobe: Floats = np.sqrt((x - 0.47) * (x - 0.47) + (y + 0.3) * (y + 0.3)) - 0.53
    # The wedge between the tip at (0, 0.95) and the points where its sides touch the lobes.
    below_lobe = -(0.72 * (y + 0.3) - 0.694 * (x - 0.47))
    wedge: Floats = np.maximum(np.maximum(0.72 * x + 0.694 * y - 0.659, below_lobe), -0.42 - y)
    return np.minimum(lobe, wedge)


OUTLINES: Final[dict[str, Callable[[Floats, Floats], Floats]]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "hexagon": _hexagon,
    "ring": _ring,
    "cross": _cross,
    "moon": _moon,
    "heart": _heart,
}

# Never together in one scene: at 33 pixels across they are too alike.
CONFUSABLE_SHAPES: Final = frozenset(
    frozenset(pair) for pair in (("circle", "hexagon"), ("square", "hexagon"))
)
