"""What a synthetic video shows, apart from pixels: objects on their paths, scenery and light.

Lengths are in units of the frame's short side, so a scene fits every frame size of its aspect
ratio; x runs to the right and y downwards from the upper left corner. Time runs from 0 (first
frame) to 1 (last frame), so a scene fits every number of frames. Colours, shapes and patterns are
names.
"""

from dataclasses import dataclass

from refsam_bench.synthetic.palette import COLOURS, Rgb, mixed
from refsam_bench.synthetic.shapes import REACH


def eased(start: float, end: float, time: float) -> float:
    """Return the smooth step from 0 (at `start`) to 1 (at `end`)."""
    share = min(max((time - start) / (end - start), 0.0), 1.0)
    return share * share * (3.0 - 2.0 * share)


@dataclass(frozen=True)
class Pose:
    """Where an object is: centre, radius, and half its turn as a tangent (0 = upright)."""

    x: float
    y: float
    radius: float
    tilt: float = 0.0


@dataclass(frozen=True)
class Keyframe:
    """A centre and a radius that an object has at a time; between two of them it moves smoothly."""

    time: float
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Fade:
    """A change of colour between two times; in between the object has no nameable colour."""

    colour: str
    start: float
    end: float


@dataclass(frozen=True)
class SceneObject:
    """One object that expressions may name.

    `object_id` is its value in label maps; greater ids lie in front. `tilt` is that of the first
    and of the last pose.
    """

    object_id: int
    shape: str
    colour: str
    pattern: str
    keyframes: tuple[Keyframe, ...]
    tilt: tuple[float, float] = (0.0, 0.0)
    fade: Fade | None = None

    def pose_at(self, time: float) -> Pose:
        """Return the pose at this time."""
        tilt = self.tilt[0] + (self.tilt[1] - self.tilt[0]) * time
        before = self.keyframes[0]
        for after in self.keyframes[1:]:
            if time <= after.time:
                share = eased(before.time, after.time, time)
                return Pose(
                    before.x + (after.x - before.x) * share,
                    before.y + (after.y - before.y) * share,
                    before.radius + (after.radius - before.radius) * share,
                    tilt,
                )
            before = after
        return Pose(before.x, before.y, before.radius, tilt)

    def colour_at(self, time: float) -> str | None:
        """Return the name of the colour at this time, or None while it changes."""
        if self.fade is None or time <= self.fade.start:
            return self.colour
        return self.fade.colour if time >= self.fade.end else None

    def rgb_at(self, time: float) -> Rgb:
        """Return the colour at this time, each channel 0 to 255."""
        if self.fade is None:
            return COLOURS[self.colour]
        share = eased(self.fade.start, self.fade.end, time)
        return mixed(COLOURS[self.colour], COLOURS[self.fade.colour], share)


@dataclass(frozen=True)
class Pole:
    """An upright grey bar that slides across in front of everything and hides what is behind it."""

    x_from: float
    x_to: float
    width: float
    grey: float

    def x_at(self, time: float) -> float:
        """Return where its middle is at this time."""
        return self.x_from + (self.x_to - self.x_from) * time


@dataclass(frozen=True)
class Look:
    """How the picture is lit and taken.

    drift: how far the backdrop moves over the clip (x, y). light: gain of the first and the last
    frame. gradient: change of gain across the frame (x, y). tint: gain per channel. noise: standard
    deviation of the sensor noise, 0 to 255. blur: passes of a 3x3 binomial filter.
    """

    drift: tuple[float, float]
    light: tuple[float, float]
    gradient: tuple[float, float]
    tint: Rgb
    noise: float
    blur: int


@dataclass(frozen=True)
class Scene:
    """All that a video shows; `view_hw` is its height and width. Ids count from 1, in order."""

    view_hw: tuple[float, float]
    objects: tuple[SceneObject, ...]
    pole: Pole | None
    look: Look

    def is_in_view(self, item: SceneObject, time: float) -> bool:
        """Return whether the object's centre is inside the frame at this time."""
        pose = item.pose_at(time)
        return 0.0 <= pose.x <= self.view_hw[1] and 0.0 <= pose.y <= self.view_hw[0]

    def has_left(self, item: SceneObject, time: float) -> bool:
        """Return whether the whole object is outside the frame at this time."""
        pose = item.pose_at(time)
        reach = pose.radius * REACH
        return not (
            -reach < pose.x < self.view_hw[1] + reach and -reach < pose.y < self.view_hw[0] + reach
        )
