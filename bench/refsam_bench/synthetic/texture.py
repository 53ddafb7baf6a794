"""What surfaces look like: backdrops made of value noise, and the patterns of objects."""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from refsam_bench.synthetic.draws import Draws
from refsam_bench.synthetic.shapes import Floats

# Noise cells in parts of the short side, and what each octave adds to a tone between 0 and 1.
_OCTAVES: Final = ((0.32, 0.55), (0.11, 0.3), (0.03, 0.15))


def _ramp(length: int, cells: int) -> tuple[npt.NDArray[np.int64], Floats]:
    position = np.arange(length, dtype=np.float32) * np.float32((cells - 1) / length)
    cell = position.astype(np.int64)
    rest = position - cell.astype(np.float32)
    return cell, rest * rest * (3.0 - 2.0 * rest)


def _value_noise(draws: Draws, height: int, width: int, cell_px: float) -> Floats:
    """Return noise in [0, 1], float32 [height, width], smooth over cells of this size."""
    rows, columns = 2 + int(height / cell_px), 2 + int(width / cell_px)
    grid = draws.noise(rows, columns).astype(np.float32) / 255.0
    cell, rest = _ramp(width, columns)
    grid = grid[:, cell] + (grid[:, cell + 1] - grid[:, cell]) * rest
    cell, rest = _ramp(height, rows)
    steps = np.diff(grid, axis=0)
    return grid[cell] + steps[cell] * rest[:, None]


def triangle_wave(position: Floats) -> Floats:
    """Return a wave of period 1 that runs between 0 (at whole numbers) and 1 (half-way)."""
    from_middle: Floats = np.abs(2.0 * (position - np.floor(position)) - 1.0)
    return 1.0 - from_middle


def _structure(draws: Draws, height: int, width: int, short_px: float) -> Floats | float:
    """Return tones about 0, [height, width], that lie over the noise: none, tiles or soft bands."""
    style = draws.below(3)
    if style == 0:
        return 0.0
    period_px = short_px * draws.between(0.12, 0.3)
    x = np.arange(width, dtype=np.float32) / period_px
    y = np.arange(height, dtype=np.float32) / period_px
    if style == 1:
        lines = np.minimum(triangle_wave(x)[None, :], triangle_wave(y)[:, None])
        return np.minimum(lines * 8.0, 1.0) * 0.3 - 0.3
    lean = draws.between(-1.0, 1.0)
    return triangle_wave(x[None, :] + lean * y[:, None]) * 0.3 - 0.15


def backdrop(draws: Draws, height: int, width: int, short_px: float) -> Floats:
    """Return a muted textured surface, float32 [3, height, width], RGB, about 40 to 210.

    Its colours are pale and of middle brightness, so that objects of every colour stand out.
    """
    tone = np.zeros((height, width), np.float32)
    for cell, share in _OCTAVES:
        tone += _value_noise(draws, height, width, max(cell * short_px, 2.0)) * share
    tone += _structure(draws, height, width, short_px)
    grey, contrast = draws.between(100.0, 150.0), draws.between(40.0, 90.0)
    surface = np.empty((3, height, width), np.float32)
    for channel in range(3):
        middle = grey + draws.between(-16.0, 16.0)
        spread = contrast + draws.between(-20.0, 20.0)
        np.multiply(tone - 0.5, spread, out=surface[channel])
        surface[channel] += middle
    return surface


def _striped(x: Floats, y: Floats, sharpness: float) -> Floats:
    del x
    return (triangle_wave(y * 1.55) - 0.5) * (0.32 * sharpness) + 0.5


def _dotted(x: Floats, y: Floats, sharpness: float) -> Floats:
    x, y = x * 1.5, y * 1.5
    x, y = x - np.floor(x + 0.5), y - np.floor(y + 0.5)
    return (0.29 - np.sqrt(x * x + y * y)) * (0.66 * sharpness) + 0.5


def _checkered(x: Floats, y: Floats, sharpness: float) -> Floats:
    x, y = triangle_wave(x * 0.9 + 0.25) - 0.5, triangle_wave(y * 0.9 + 0.25) - 0.5
    nearer = np.minimum(np.abs(x), np.abs(y))
    return np.where(x * y > 0.0, nearer, -nearer) * (0.55 * sharpness) + 0.5


# Share of the second colour, before clipping to [0, 1]. x and y run along the object's own axes in
# units of its radius; sharpness is that radius in pixels: edges are a pixel soft at every size.
PATTERNS: Final[dict[str, Callable[[Floats, Floats, float], Floats] | None]] = {
    "plain": None,
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
}
