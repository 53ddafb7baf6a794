"""Single frames full of objects: many more of them to learn from than in a video's frame.

An image costs the same whatever it shows, and what takes longest is to see shapes. Objects stand in
a loose grid of nine or sixteen; neighbours may overlap a little.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from refsam_bench.synthetic import Slice
from refsam_bench.synthetic.compose import draw_look
from refsam_bench.synthetic.draws import Draws
from refsam_bench.synthetic.language.grammar import sentence
from refsam_bench.synthetic.language.naming import meaning_of
from refsam_bench.synthetic.palette import COLOURS
from refsam_bench.synthetic.render import canvas_of, render_frame
from refsam_bench.synthetic.scene import Keyframe, Scene, SceneObject
from refsam_bench.synthetic.shapes import OUTLINES
from refsam_bench.synthetic.texture import PATTERNS
from refsam_train.data.cells import shown_objects
from refsam_train.data.clips import Clip

SIZE_HW: Final = (256, 256)

# Streams of draws; the slices of videos have the first few numbers.
_CROWD: Final = 100
_SCENE, _BACKDROP, _WORDS, _NOISE = range(4)
# Objects per side, smallest and largest radius in parts of the frame.
_LAYOUTS: Final = ((3, 0.08, 0.16), (4, 0.075, 0.13))
_SHIFT: Final = 0.2
_PLAIN_SHARE: Final = 0.4
CROWD_SLICES: Final[tuple[Slice, ...]] = ("attribute", "attribute", "attribute", "size", "position")


def crowd_clip(seed: int, index: int, num_expressions: int) -> Clip:
    """Return a clip of one frame with at most so many expressions, of different objects."""
    scene = _scene(Draws(seed, index, _CROWD, _SCENE))
    canvas = canvas_of(scene, Draws(seed, index, _CROWD, _BACKDROP), SIZE_HW)
    noise = Draws(seed, index, _CROWD, _NOISE).noise(3, *SIZE_HW)
    frame, label_map, _ = render_frame(scene, canvas, noise, 0.0, SIZE_HW)
    named = _expressions(Draws(seed, index, _CROWD, _WORDS), scene, num_expressions)
    masks = np.stack([(label_map == object_id)[None] for _, object_id in named])
    texts = tuple(text for text, _ in named)
    shown = shown_objects(scene, label_map[None], (0.0,))
    return Clip(frame[None], masks, texts, f"crowd {seed}/{index}", shown)


def _scene(draws: Draws) -> Scene:
    per_side, smallest, largest = draws.pick(_LAYOUTS)
    places = [(row, column) for row in range(per_side) for column in range(per_side)]
    objects = []
    for object_id, (row, column) in enumerate(draws.shuffled(places), start=1):
        x, y = (
            (place + 0.5 + draws.between(-_SHIFT, _SHIFT)) / per_side for place in (column, row)
        )
        start = Keyframe(0.0, x, y, draws.between(smallest, largest))
        tilt = draws.between(-0.18, 0.18)
        pattern = "plain" if draws.chance(_PLAIN_SHARE) else draws.pick(tuple(PATTERNS))
        shape, colour = draws.pick(tuple(OUTLINES)), draws.pick(tuple(COLOURS))
        objects.append(SceneObject(object_id, shape, colour, pattern, (start,), (tilt, tilt)))
    return Scene((1.0, 1.0), tuple(objects), None, draw_look(draws, "attribute"))


def _expressions(draws: Draws, scene: Scene, count: int) -> list[tuple[str, int]]:
    """Return texts and what they name, at least one: a crowd without any is not to be had."""
    named: list[tuple[str, int]] = []
    for item in draws.shuffled(scene.objects):
        name = draws.pick(CROWD_SLICES)
        meaning = meaning_of(draws, scene, item, name)
        if meaning is None:
            name, meaning = "attribute", meaning_of(draws, scene, item, "attribute")
        if meaning is not None:
            size = sum(meaning.kind.fits(other, 0.0) for other in scene.objects)
            named.append((sentence(draws, meaning, name, size), item.object_id))
        if len(named) == count:
            break
    assert named, "nine objects of nine shapes and ten colours that are all alike"
    return named
