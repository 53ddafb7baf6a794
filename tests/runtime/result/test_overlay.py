"""Masks drawn on frames, and the palette."""

import numpy as np
import pytest
import shared_data
from PIL import Image

from refsam_trt.errors import UsageError
from refsam_trt.result.overlay import PALETTE, colors_for, draw

RED, GREEN = (200, 30, 40), (20, 180, 60)


def grey(hw=(120, 160)):
    return np.full((*hw, 3), 100, np.uint8)


def box_mask(y0, y1, x0, x1, hw=(120, 160)):
    mask = np.zeros(hw, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_the_palette_begins_as_davis_does_and_cannot_be_changed():
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128)]
    assert [tuple(color) for color in PALETTE[:6].tolist()] == expected
    assert PALETTE[20].tolist() == [0, 64, 128]
    assert PALETTE[255].tolist() == [224, 224, 192]
    assert len({tuple(color) for color in PALETTE.tolist()}) == 256
    with pytest.raises(ValueError, match="read-only"):
        PALETTE[0] = 1


def test_the_palette_is_that_of_real_annotations():
    path = shared_data.path("ref-davis-mini", "valid", "Annotations", "schoolgirls", "00000.png")
    with Image.open(path) as image:
        stored = np.array(image.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(PALETTE[:8], stored[:8])


def test_colors_skip_the_background():
    np.testing.assert_array_equal(colors_for(3), PALETTE[1:4])
    assert colors_for(0).shape == (0, 3)
    with pytest.raises(UsageError, match="found 256 expressions, expected at most 255"):
        colors_for(256)


def test_a_mask_is_tinted_inside_outlined_and_left_alone_outside():
    frame, mask = grey(), box_mask(60, 100, 40, 90)
    out = draw(frame, [mask], [""], [RED])
    assert np.array_equal(frame, grey())
    np.testing.assert_array_equal(out[~mask], frame[~mask])
    np.testing.assert_array_equal(out[60, 40:90], np.tile(RED, (50, 1)))
    np.testing.assert_array_equal(out[99, 40:90], np.tile(RED, (50, 1)))
    np.testing.assert_array_equal(out[60:100, 40], np.tile(RED, (40, 1)))
    inside = [(100 * (256 - 115) + c * 115) // 256 for c in RED]
    np.testing.assert_array_equal(out[61:99, 41:89], np.tile(inside, (38, 48, 1)))


def test_the_outline_follows_a_mask_at_the_frame_edge_and_around_a_hole():
    mask = box_mask(0, 120, 0, 160)
    mask[50:60, 50:60] = False
    out = draw(grey(), [mask], [""], [RED])
    on_outline = (out == RED).all(axis=2)
    assert on_outline[0].all()
    assert on_outline[:, -1].all()
    assert on_outline[49, 50:60].all()
    assert on_outline.sum() == 2 * 160 + 2 * 118 + 4 * 10


def test_later_masks_lie_on_top():
    mask = box_mask(60, 100, 40, 90)
    out = draw(grey(), [mask, mask], ["", ""], [RED, GREEN])
    assert out[60, 40].tolist() == list(GREEN)


def test_captions_stand_above_their_masks_in_their_colours():
    mask = box_mask(60, 100, 40, 90)
    plain = draw(grey(), [mask], [""], [RED])
    out = draw(grey(), [mask], ["dog"], [RED])
    changed = (out != plain).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert rows.max() < 60
    assert rows.min() > 30
    assert columns.min() == 40
    box = out[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].reshape(-1, 3)
    assert (box == RED).all(axis=1).mean() > 0.5
    assert (box > 200).all(axis=1).any()  # letters


def test_captions_on_light_colours_have_dark_letters():
    out = draw(grey(), [box_mask(60, 100, 40, 90)], ["dog"], [(250, 250, 90)])
    assert (out < 50).all(axis=2).any()
    assert not (out > 200).all(axis=2).any()


@pytest.mark.parametrize("caption", ["cannot fit, " * 9, "w" * 100_000, "cannot\nfit,\t" * 999])
def test_captions_stay_inside_the_frame_and_are_cut(caption):
    mask = box_mask(0, 30, 100, 160)
    out = draw(grey(), [mask], [caption], [RED])
    caption_rows = out[1:15]
    assert (caption_rows[:, 2] == RED).all()  # reaches to the left ...
    assert (caption_rows[:, -2:] == RED).all()  # ... and ends before the right
    assert (caption_rows > 200).all(axis=2).any()


def test_captions_of_the_same_place_stand_below_each_other():
    mask = box_mask(60, 100, 40, 90)
    colors = colors_for(3)
    out = draw(grey(), [mask] * 3, ["dog", "dog", "dog"], colors)
    heights = [np.flatnonzero((out == color).all(axis=2)[:, 41]) for color in colors[:2]]
    assert heights[0].max() < heights[1].min()


def test_empty_masks_and_no_masks_leave_no_trace():
    empty = np.zeros((120, 160), bool)
    np.testing.assert_array_equal(draw(grey(), [empty], ["gone"], [RED]), grey())
    np.testing.assert_array_equal(draw(grey(), [], [], []), grey())


def test_real_frames_with_real_masks_also_turned():
    folder = shared_data.path("ref-davis-mini", "valid")
    frame = np.array(Image.open(folder / "JPEGImages" / "schoolgirls" / "00000.jpg"))
    label_map = np.array(Image.open(folder / "Annotations" / "schoolgirls" / "00000.png"))
    for turns in (0, 1):
        turned, labels = np.rot90(frame, turns), np.rot90(label_map, turns)
        masks = np.stack([labels == k for k in range(1, 8)])
        out = draw(turned, masks, [f"girl {k}" for k in range(7)], colors_for(7))
        changed = (out != turned).any(axis=2)
        assert changed[labels > 0].mean() > 0.95
        assert changed[labels == 0].mean() < 0.35  # captions only
        assert out.flags.c_contiguous


@pytest.mark.parametrize(
    ("frame", "masks", "captions", "colors", "text"),
    [
        (grey().astype(float), [], [], [], "found float64 (120, 160, 3), expected uint8"),
        (grey()[..., 0], [], [], [], "found uint8 (120, 160), expected uint8 [H, W, 3]"),
        (grey(), [box_mask(0, 1, 0, 1)], [], [RED], "found 1 masks, 0 captions and 1 colors"),
        (grey(), [box_mask(0, 1, 0, 1)], ["a"], [], "found 1 masks, 1 captions and 0 colors"),
        (grey(), [np.zeros((2, 2), bool)], ["a"], [RED], "found bool (2, 2), expected bool (120"),
        (grey(), [np.zeros((120, 160))], ["a"], [RED], "found float64 (120, 160)"),
    ],
)
def test_other_input_is_refused(frame, masks, captions, colors, text):
    with pytest.raises(UsageError) as error:
        draw(frame, masks, captions, colors)
    assert text in str(error.value)
