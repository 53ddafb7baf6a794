"""Run-length coding against pycocotools, against a naive twin, and against hostile input."""

import numpy as np
import pytest
import shared_data
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy
from PIL import Image

from refsam_trt.errors import UsageError
from refsam_trt.result.rle import mask_from_rle, rle_from_mask

SHAPES = [(1, 1), (1, 7), (7, 1), (13, 9), (64, 48), (200, 301)]


def random_masks(hw, seed=0):
    rng = np.random.default_rng(seed)
    yield np.zeros(hw, bool)
    yield np.ones(hw, bool)
    for density in (0.02, 0.5, 0.98):
        yield rng.random(hw) < density
    coarse = rng.random((hw[0] // 8 + 1, hw[1] // 8 + 1)) < 0.4
    yield np.kron(coarse, np.ones((8, 8), bool))[: hw[0], : hw[1]].astype(bool)


def naive_counts(mask):
    counts, current, run = [], False, 0
    for pixel in mask.T.ravel().tolist():
        if pixel != current:
            counts.append(run)
            current, run = pixel, 0
        run += 1
    return [*counts, run]


# pycocotools 2.0.11 converts arrays the way numpy 2 warns about.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("hw", SHAPES)
def test_strings_equal_pycocotools(hw):
    coco = pytest.importorskip("pycocotools.mask")
    for mask in random_masks(hw):
        theirs = coco.encode(np.asfortranarray(mask, np.uint8))
        ours = rle_from_mask(mask)
        assert ours == {"size": list(hw), "counts": theirs["counts"].decode("ascii")}
        np.testing.assert_array_equal(mask_from_rle(theirs), mask, strict=True)
        np.testing.assert_array_equal(coco.decode(ours).astype(bool), mask)


def test_real_masks_equal_pycocotools_also_turned():
    coco = pytest.importorskip("pycocotools.mask")
    folder = shared_data.path("ref-davis-mini", "valid", "Annotations", "schoolgirls")
    for path in sorted(folder.glob("*.png"))[::20]:
        label_map = np.array(Image.open(path))
        for mask in (label_map == 1, np.rot90(label_map) > 0):
            theirs = coco.encode(np.asfortranarray(mask, np.uint8))
            assert rle_from_mask(mask)["counts"] == theirs["counts"].decode("ascii")
            np.testing.assert_array_equal(mask_from_rle(rle_from_mask(mask)), mask)


def test_runs_of_many_pixels_equal_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((5000, 4000), bool)
    mask[4999, 3998] = mask[17, 2] = True
    theirs = coco.encode(np.asfortranarray(mask, np.uint8))
    assert rle_from_mask(mask)["counts"] == theirs["counts"].decode("ascii")
    np.testing.assert_array_equal(mask_from_rle(theirs), mask)


@given(hypothesis_numpy.arrays(bool, hypothesis_numpy.array_shapes(min_dims=2, max_dims=2)))
def test_any_mask_survives_both_codings(mask):
    plain = {"size": list(mask.shape), "counts": naive_counts(mask)}
    for rle in (rle_from_mask(mask), plain):
        decoded = mask_from_rle(rle)
        np.testing.assert_array_equal(decoded, mask, strict=True)
        assert decoded.flags.c_contiguous


def test_runs_of_nothing_are_accepted():
    decoded = mask_from_rle({"size": [2, 2], "counts": [1, 1, 0, 0, 2]})
    np.testing.assert_array_equal(decoded, [[False, False], [True, False]])


@pytest.mark.parametrize(
    ("size", "counts", "text"),
    [
        ([2, 3], [2, 2, 1], "runs of 5 pixels together, expected 6"),
        ([2, 3], [2, 2, 3], "runs of 7 pixels together, expected 6"),
        ([2, 3], [], "runs of 0 pixels together, expected 6"),
        ([2, 3], [2, -2, 6], "whole numbers from 0 to 6"),
        ([2, 3], [2, 4.0], "whole numbers from 0 to 6"),
        ([2, 3], [10**30], "whole numbers from 0 to 6"),
        ([2, 3], [True, 5], "whole numbers from 0 to 6"),
        ([2, 3], [0] * 8, "a list of at most 7 runs"),
        ([2, 3], 6, "found int, expected str, bytes or a list"),
        ([2, 3], "", "found no or other characters"),
        ([2, 3], "é", "found non-ASCII text"),
        ([2, 3], "6 ", "found no or other characters"),
        ([2, 3], "6p", "found no or other characters"),
        ([2, 3], "6~", "found no or other characters"),
        ([2, 3], "6P", "unfinished or overlong run"),
        ([2, 3], "P" * 7 + "0", "unfinished or overlong run"),
        ([2, 3], "5", "runs of 5 pixels together, expected 6"),
        ([2, 3], "M", "a run out of range, expected 6"),  # -3
        ([2, 3], "9M", "a run out of range, expected 6"),
        ([2, 3], "0" * 50, "found str, expected str, bytes or a list of at most 7 runs"),
        ([2, 3], "ooooo?", "a run out of range"),
        ([0, 3], "0", "RLE size: found [0, 3]"),
        ([-2, -3], "6", "RLE size: found [-2, -3]"),
        ([2.0, 3], "6", "RLE size: found [2.0, 3]"),
        ([True, 6], "6", "RLE size: found [True, 6]"),
        ([2, 3, 1], "6", "RLE size"),
        ("23", "6", "RLE size: found 23"),
        (None, "6", "RLE size: found None"),
        ([10**9, 10**9], "6", "of 1 to 64,000,000 pixels"),
        ([64_000_001, 1], [64_000_001], "of 1 to 64,000,000 pixels"),
    ],
)
def test_hostile_input_is_refused(size, counts, text):
    with pytest.raises(UsageError) as error:
        mask_from_rle({"size": size, "counts": counts})
    assert text in str(error.value)


def test_missing_and_unknown_keys_are_refused():
    with pytest.raises(UsageError, match=r"found keys \['counts'\], expected 'counts' and 'size'"):
        mask_from_rle({"counts": "6"})
    with pytest.raises(UsageError, match="'order'"):
        mask_from_rle({"counts": "6", "size": [2, 3], "order": "C"})


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30))
def test_any_text_is_decoded_or_refused(text):
    try:
        mask = mask_from_rle({"size": [5, 4], "counts": text})
    except UsageError:
        return
    assert mask.shape == (5, 4)
    assert rle_from_mask(mask)["size"] == [5, 4]


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((2, 3), np.uint8),
        np.zeros(3, bool),
        np.zeros((0, 3), bool),
        np.zeros((1, 2, 3), bool),
    ],
)
def test_other_masks_are_refused(mask):
    with pytest.raises(UsageError, match=r"expected bool \[H, W\] of 1 to 64,000,000 pixels"):
        rle_from_mask(mask)
