"""Augmentation keeps frames and masks together, swaps sides, and stays within the sizes of 9.4."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from refsam_train.data.augment import augment, mirrored, resized, swap_sides
from refsam_train.data.clips import Clip
from refsam_train.data.colour import contrast, jitter, shift_hue


def _clip(num_frames: int = 2, size_hw: tuple[int, int] = (120, 160)) -> Clip:
    """A white rectangle on black which is also the mask: what moves one must move the other."""
    masks = np.zeros((1, num_frames, *size_hw), np.bool_)
    for frame in range(num_frames):
        masks[0, frame, 30:70, 20 + 10 * frame : 60] = True
    frames = np.repeat(masks[0, ..., None], 3, axis=-1).astype(np.uint8) * 255
    return Clip(frames, masks, ("the box on the left",), "test")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the man on the left", "the man on the right"),
        ("rightmost dog, left of the cat", "leftmost dog, right of the cat"),
        ("Left LEFT Rightmost", "Right RIGHT Leftmost"),
        ("a bright thing that was cleft", "a bright thing that was cleft"),
    ],
)
def test_sides_are_swapped_as_words(text: str, expected: str) -> None:
    assert swap_sides(text) == expected
    assert swap_sides(expected) == text


def test_mirroring_twice_gives_the_clip_back() -> None:
    clip = _clip()
    once = mirrored(clip)
    assert once.texts == ("the box on the right",)
    assert np.array_equal(once.frames[0, :, 0], clip.frames[0, :, -1])
    twice = mirrored(once)
    assert np.array_equal(twice.frames, clip.frames)
    assert np.array_equal(twice.masks, clip.masks)
    assert twice.texts == clip.texts


@pytest.mark.parametrize("sizes", ["video", "image"])
def test_masks_stay_on_their_objects(sizes: str) -> None:
    shapes = set()
    for seed in range(12):
        found = augment(_clip(), sizes, np.random.default_rng(seed))  # type: ignore[arg-type]
        assert found.frames.shape[:3] == found.masks.shape[1:]
        for frame, mask in zip(found.frames.astype(np.int64).sum(-1), found.masks[0], strict=True):
            if mask.any():
                assert np.array_equal(frame > (frame.min() + frame.max()) / 2, mask)
        assert found.texts[0] in ("the box on the left", "the box on the right")
        shapes.add(found.frames.shape[1:3])
    sides = {side for shape in shapes for side in shape}
    assert len(shapes) > 4
    assert sides <= set(range(288, 769, 2))
    assert max(sides) > 512 if sizes == "image" else max(sides) <= 512


def test_augmentation_is_a_function_of_the_generator() -> None:
    first, again, other = (
        augment(_clip(), "video", np.random.default_rng(seed)).frames for seed in (5, 5, 6)
    )
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_resizing_takes_the_nearest_pixel() -> None:
    clip = _clip(1, (4, 6))
    frames = np.arange(72, dtype=np.uint8).reshape(1, 4, 6, 3)
    found = resized(Clip(frames, clip.masks, clip.texts, "x"), (2, 9)).frames[0]
    for row in range(2):
        for column in range(9):
            source = frames[0, int((row + 0.5) * 2), int((column + 0.5) * 6 / 9)]
            assert np.array_equal(found[row, column], source)


def test_hue_turns_like_that_of_the_standard_library() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((6, 5, 3)).astype(np.float32)
    image[0, 0] = 0.4
    turned = shift_hue(image, np.float32(0.07))
    for pixel, changed in zip(image.reshape(-1, 3), turned.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, pixel))
        expected = colorsys.hsv_to_rgb((hue + 0.07) % 1.0, saturation, value)
        assert changed == pytest.approx(expected, abs=1e-5)


def test_contrast_keeps_the_mean_grey_and_one_changes_nothing() -> None:
    image = np.random.default_rng(1).uniform(0.3, 0.7, (8, 8, 3)).astype(np.float32)
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    assert contrast(image, np.float32(1.0)) == pytest.approx(image, abs=1e-6)
    changed = contrast(image, np.float32(0.5))
    assert (changed @ luma).mean() == pytest.approx((image @ luma).mean(), abs=1e-5)
    assert changed.std() == pytest.approx(image.std() / 2, rel=0.05)


def test_jitter_stays_in_range_and_leaves_some_frames_alone() -> None:
    image = np.random.default_rng(2).random((8, 8, 3)).astype(np.float32)
    results = [jitter(image, np.random.default_rng(seed)) for seed in range(600)]
    assert min(r.min() for r in results) >= 0.0
    assert max(r.max() for r in results) <= 1.0
    unchanged = sum(np.array_equal(r, image) for r in results)
    assert 0 <= unchanged <= 8  # 600 * 0.3 ** 5 = 1.5 expected
