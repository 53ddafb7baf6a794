"""Pixels of a scene: antialiased objects over a moving backdrop, then light, blur and noise.

Every value comes from single IEEE 754 float32 operations in a fixed order (no sums over axes, no
matrix products, no trigonometry), so the same scene gives the same bytes on every machine.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refsam_bench.synthetic.draws import Draws
from refsam_bench.synthetic.palette import accent
from refsam_bench.synthetic.scene import Look, Pole, Scene, SceneObject
from refsam_bench.synthetic.shapes import OUTLINES, REACH, Floats
from refsam_bench.synthetic.texture import PATTERNS, backdrop

# Standard deviation of a byte drawn uniformly from 0 to 255.
_BYTE_DEVIATION = 73.9


@dataclass
class Picture:
    """One frame while it is painted.

    `rgb` is float32 [3, H, W], 0 to 255; `label_map` uint8 [H, W].
    """

    rgb: Floats
    label_map: npt.NDArray[np.uint8]
    short_px: float


def canvas_of(scene: Scene, draws: Draws, size_hw: tuple[int, int]) -> Floats:
    """Return the backdrop for the whole clip, float32 [3, H + drift, W + drift], RGB."""
    short_px = float(min(size_hw))
    height = size_hw[0] + 1 + int(abs(scene.look.drift[1]) * short_px)
    width = size_hw[1] + 1 + int(abs(scene.look.drift[0]) * short_px)
    return backdrop(draws, height, width, short_px)


def render_frame(
    scene: Scene,
    canvas: Floats,
    noise: npt.NDArray[np.uint8],
    time: float,
    size_hw: tuple[int, int],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], list[int]]:
    """Paint one frame.

    Args:
        scene: What to paint.
        canvas: From `canvas_of` for this scene and size.
        noise: uint8 [3, H, W], uniform.
        time: 0 (first frame) to 1 (last frame).
        size_hw: Height and width in pixels.

    Returns:
        The frame (uint8 [H, W, 3], RGB), its label map (uint8 [H, W], 0 = none, k = object k) and,
        per object, how many pixels of the frame it would cover if nothing were in front of it.
    """
    short_px = float(min(size_hw))
    rgb = _backdrop_at(canvas, scene.look, time, size_hw, short_px)
    picture = Picture(rgb, np.zeros(size_hw, np.uint8), short_px)
    amodal_px = [_paint_object(picture, item, time) for item in scene.objects]
    if scene.pole is not None:
        _paint_pole(picture, scene.pole, time)
    _light(picture.rgb, scene.look, time)
    for _ in range(scene.look.blur):
        _blur(picture.rgb)
    _add_noise(picture.rgb, noise, scene.look.noise)
    return _as_bytes(picture.rgb), picture.label_map, amodal_px


def _backdrop_at(
    canvas: Floats, look: Look, time: float, size_hw: tuple[int, int], short_px: float
) -> Floats:
    left, top = (
        int(abs(step) * short_px * (time if step > 0 else 1.0 - time)) for step in look.drift
    )
    return canvas[:, top : top + size_hw[0], left : left + size_hw[1]].copy()


def _span(centre_px: float, reach_px: float, limit: int) -> slice:
    start = min(max(int(centre_px - reach_px), 0), limit)
    return slice(start, min(max(int(centre_px + reach_px) + 1, start), limit))


def _paint_object(picture: Picture, item: SceneObject, time: float) -> int:
    """Paint the object over what is there and return how many pixels it covers now."""
    pose = item.pose_at(time)
    radius_px = pose.radius * picture.short_px
    x_px, y_px = pose.x * picture.short_px, pose.y * picture.short_px
    rows = _span(y_px, radius_px * REACH + 1.5, picture.label_map.shape[0])
    columns = _span(x_px, radius_px * REACH + 1.5, picture.label_map.shape[1])
    if rows.start == rows.stop or columns.start == columns.stop:
        return 0
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5 - x_px)[None, :]
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5 - y_px)[:, None]
    # The tangent of the half angle gives cosine and sine without trigonometry.
    scale = 1.0 / ((1.0 + pose.tilt * pose.tilt) * radius_px)
    cos, sin = (1.0 - pose.tilt * pose.tilt) * scale, 2.0 * pose.tilt * scale
    x, y = x * cos + y * sin, y * cos - x * sin
    depth_px = OUTLINES[item.shape](x, y) * -radius_px
    cover = np.clip(depth_px + 0.5, 0.0, 1.0)
    # A dark rim two pixels wide and a slight fall of light: outlines show on any backdrop.
    shade = (0.62 + 0.38 * np.clip(depth_px - 1.5, 0.0, 1.0)) * (1.0 - 0.12 * y)
    colour = item.rgb_at(time)
    second = accent(colour)
    pattern = PATTERNS[item.pattern]
    share = None if pattern is None else np.clip(pattern(x, y, radius_px), 0.0, 1.0)
    for channel in range(3):
        below = picture.rgb[channel, rows, columns]
        paint = shade * colour[channel]
        if share is not None:
            paint += share * (shade * (second[channel] - colour[channel]))
        below += (paint - below) * cover
    inside = depth_px >= 0.0
    picture.label_map[rows, columns][inside] = item.object_id
    return int(np.count_nonzero(inside))


def _paint_pole(picture: Picture, pole: Pole, time: float) -> None:
    middle_px, half_px = pole.x_at(time) * picture.short_px, 0.5 * pole.width * picture.short_px
    columns = _span(middle_px, half_px + 1.5, picture.label_map.shape[1])
    x = np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5 - middle_px
    cover = np.clip(half_px + 0.5 - np.abs(x), 0.0, 1.0)
    paint = pole.grey * (1.0 - 0.35 * np.abs(x) / half_px)
    picture.rgb[:, :, columns] += (paint - picture.rgb[:, :, columns]) * cover
    picture.label_map[:, columns][:, cover >= 0.5] = 0


def _light(rgb: Floats, look: Look, time: float) -> None:
    height, width = rgb.shape[1:]
    gain = look.light[0] + (look.light[1] - look.light[0]) * time
    x = (np.arange(width, dtype=np.float32) / width - 0.5) * (look.gradient[0] * gain)
    y = (np.arange(height, dtype=np.float32) / height - 0.5) * (look.gradient[1] * gain) + gain
    gains = y[:, None] + x[None, :]
    for channel in range(3):
        rgb[channel] *= gains * look.tint[channel]


def _blur(rgb: Floats) -> None:
    """Blur in place with [1 2 1] / 4 along both axes; the outermost pixels keep their value."""
    pairs = rgb[:, :, :-1] + rgb[:, :, 1:]
    rgb[:, :, 1:-1] = (pairs[:, :, :-1] + pairs[:, :, 1:]) * 0.25
    pairs = rgb[:, :-1] + rgb[:, 1:]
    rgb[:, 1:-1] = (pairs[:, :-1] + pairs[:, 1:]) * 0.25


def _add_noise(rgb: Floats, noise: npt.NDArray[np.uint8], deviation: float) -> None:
    grain = np.subtract(noise, 127.5, dtype=np.float32)
    grain *= deviation / _BYTE_DEVIATION
    rgb += grain


def _as_bytes(rgb: Floats) -> npt.NDArray[np.uint8]:
    np.clip(rgb, 0.0, 255.0, out=rgb)
    frame = np.empty((*rgb.shape[1:], 3), np.uint8)
    for channel in range(3):
        frame[:, :, channel] = rgb[channel].astype(np.uint8)
    return frame
