"""J, F and their statistics: against slow twins and against values worked out by hand."""

import math

import numpy as np
import pytest
from accuracy_twin import pixels, slow_boundary, slow_f, slow_j, slow_statistics

from refsam_bench.accuracy.metrics import (
    boundary_map,
    boundary_tolerance_px,
    outline_agreement,
    outline_of,
    region_similarity,
    statistics,
)
from refsam_trt.errors import UsageError


def boundary_measure(predicted, true):
    return outline_agreement(outline_of(predicted), outline_of(true))


def mask(*rows):
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def random_masks(seed, height, width):
    """Yield pairs of masks: noise, a disk against a shifted disk, a disk against a grown one.

    Large masks come without noise, whose boundary would keep the slow twin busy for seconds.
    """
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[:height, :width]
    cy, cx = rng.uniform(0, height), rng.uniform(0, width)
    radius = rng.uniform(1, 1 + min(height, width) / 2)
    disk = (ys - cy) ** 2 + (xs - cx) ** 2 <= radius**2
    if height * width < 1000:
        yield rng.random((height, width)) < 0.5, rng.random((height, width)) < 0.2
    yield disk, np.roll(disk, 2, axis=1)
    yield disk, (ys - cy) ** 2 + (xs - cx) ** 2 <= (radius + 3) ** 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (17, 23), (90, 120)])
def test_j_and_f_equal_the_slow_twins(seed, size):
    for predicted, true in random_masks(seed, *size):
        assert region_similarity(predicted, true) == pytest.approx(slow_j(predicted, true))
        assert pixels(boundary_map(true)) == slow_boundary(true)
        assert boundary_measure(predicted, true) == pytest.approx(slow_f(predicted, true))


def test_f_equals_the_slow_twin_at_a_tolerance_of_eight_pixels():
    ys, xs = np.mgrid[:480, :854]
    true = (ys - 200) ** 2 + (xs - 300) ** 2 <= 40**2
    predicted = (ys - 205) ** 2 + (xs - 306) ** 2 <= 42**2
    measured = boundary_measure(predicted, true)
    assert measured == pytest.approx(slow_f(predicted, true))
    assert 0.5 < measured < 1


@pytest.mark.parametrize(
    ("size", "tolerance"),
    [((480, 854), 8), ((1080, 1920), 18), ((240, 432), 4), ((75, 100), 1), ((76, 100), 2)],
)
def test_tolerance_is_the_rounded_up_share_of_the_diagonal(size, tolerance):
    # The diagonal of 75x100 is 125, and 0.8 % of it exactly 1.
    assert boundary_tolerance_px(*size) == tolerance


def test_tolerance_includes_its_rim_and_nothing_beyond():
    def single(y, x):
        found = np.zeros((480, 854), dtype=bool)
        found[y, x] = True
        return found

    # One pixel has a boundary of 2x2 pixels; 8 px away it is fully within reach, 9 px half.
    assert boundary_measure(single(100, 108), single(100, 100)) == 1
    assert boundary_measure(single(100, 109), single(100, 100)) == 0.5
    assert boundary_measure(single(100, 110), single(100, 100)) == 0


def test_one_pixel_has_a_boundary_towards_the_origin():
    found = boundary_map(mask("....", "....", "..#.", "...."))
    assert (found == mask("....", ".##.", ".##.", "....")).all()


@pytest.mark.parametrize(
    ("pixel", "boundary"),
    [
        (mask("#..", "...", "..."), mask("#..", "...", "...")),
        (mask("...", "...", "..#"), mask("...", ".##", ".#.")),
        (mask("..#", "...", "..."), mask(".##", "...", "...")),
        (mask("...", "...", "#.."), mask("...", "#..", "#..")),
    ],
)
def test_one_pixel_in_a_corner(pixel, boundary):
    assert (boundary_map(pixel) == boundary).all()


def test_empty_and_full_masks():
    empty, full, part = np.zeros((6, 8), bool), np.ones((6, 8), bool), np.eye(6, 8, dtype=bool)
    assert (region_similarity(empty, empty), boundary_measure(empty, empty)) == (1, 1)
    assert (region_similarity(empty, part), boundary_measure(empty, part)) == (0, 0)
    assert (region_similarity(part, empty), boundary_measure(part, empty)) == (0, 0)
    # A mask that fills the frame has no boundary, so F cannot tell it from an empty one.
    assert (region_similarity(full, empty), boundary_measure(full, empty)) == (0, 1)
    assert boundary_measure(full, part) == 0


def test_j_by_hand():
    assert region_similarity(mask("##.", "##."), mask(".##", ".##")) == pytest.approx(2 / 6)


def test_f_by_hand():
    # 3x10: the tolerance is 1 px. The boundary of the true mask is x = 2; that of the prediction
    # x = 2 (right) and x = 6 (4 px away), so precision is 1/2, recall 1, F 2/3.
    true = mask("###.......", "###.......", "###.......")
    predicted = mask("###....###", "###....###", "###....###")
    assert boundary_measure(predicted, true) == pytest.approx(2 / 3)
    assert boundary_measure(true, predicted) == pytest.approx(2 / 3)


def test_void_pixels_count_for_neither_mask():
    predicted, true = mask("####", "####"), mask("##..", "##..")
    void = mask("..##", "..##")
    assert region_similarity(predicted, true) == 0.5
    assert region_similarity(predicted, true, void) == 1
    everything = np.ones_like(void)
    assert region_similarity(predicted, ~true, everything) == 1


def test_shapes_that_differ_are_refused():
    one, other = np.zeros((3, 4), bool), np.zeros((4, 3), bool)
    text = r"masks of shapes \(3, 4\) and \(4, 3\) cannot be compared: give two arrays"
    with pytest.raises(UsageError, match=text):
        region_similarity(one, other)
    with pytest.raises(UsageError, match=text):
        boundary_measure(one, other)
    with pytest.raises(UsageError, match="cannot be compared"):
        region_similarity(one, one, void=other)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 38, 48, 101, 254, 255])
def test_statistics_equal_the_slow_twin(length):
    values = np.random.default_rng(length).random(length)
    found = statistics(values)
    expected = slow_statistics(values.tolist())
    assert (found.mean, found.recall, found.decay) == pytest.approx(expected)


@pytest.mark.parametrize("length", [256, 257, 300, 341, 342, 343, 400, 512, 1000, 1021])
def test_decay_beyond_255_frames_wraps_like_the_official_code(length):
    values = np.random.default_rng(length).random(length)
    expected = slow_statistics(values.tolist())[2]
    assert statistics(values).decay == pytest.approx(expected, nan_ok=True)


def test_decay_beyond_255_frames_by_hand():
    values = np.linspace(1, 0, 400)
    # Edges 0, 100, 200, 299, 399 become 0, 100, 200, 43, 143: bins 0..100 and 43..143.
    expected = values[:101].mean() - values[43:144].mean()
    assert statistics(values).decay == pytest.approx(expected)
    # Edges 224 and 299 become 224 and 43: nothing lies between them.
    assert math.isnan(statistics(values[:300]).decay)
    assert statistics(values[:300]).mean == pytest.approx(values[:300].mean())


def test_statistics_by_hand():
    found = statistics(np.array([1.0, 0.9, 0.5, 0.6, 0.2]))
    # Bins share their ends: frames 0..1 and 3..4. A value of exactly 0.5 is not recalled.
    assert (found.mean, found.recall) == pytest.approx((0.64, 0.6))
    assert found.decay == pytest.approx(0.95 - 0.4)


def test_one_frame_has_no_decay():
    found = statistics(np.array([0.7]))
    assert (found.mean, found.recall, found.decay) == (0.7, 1.0, 0.0)
