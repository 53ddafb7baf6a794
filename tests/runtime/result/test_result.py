"""What a result says follows from its logits; polygons give the mask back."""

import sys
import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refsam_trt.errors import UsageError
from refsam_trt.image.postprocess import Postprocessor, label_map_from_logits
from refsam_trt.image.preprocess import PreprocessConfig, geometry
from refsam_trt.result.polygons import polygons_from_mask
from refsam_trt.result.raw_frame import RawFrame
from refsam_trt.result.result import FrameResults, frame_results
from refsam_trt.result.rle import mask_from_rle

HW = (30, 45)
POSTPROCESSOR = Postprocessor(geometry(HW, PreprocessConfig(32, None)), (8, 8))


def make_results(*planes: np.ndarray, threshold: float = 0.0) -> FrameResults:
    num = len(planes)
    raw = RawFrame(
        frame_index=5,
        expression_ids=tuple(range(10, 10 + num)),
        texts=tuple(f"thing {index}" for index in range(num)),
        low_res_logits=np.array(planes, np.float32),
        predicted_iou=np.linspace(0.5, 1, num).astype(np.float32),
    )
    return frame_results(raw, POSTPROCESSOR, HW, threshold)


def random_plane(seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return 3 * np.random.default_rng(seed).standard_normal((8, 8)) + shift


EMPTY = np.full((8, 8), -1.0)


def even_odd_fill(loops: list[np.ndarray], hw: tuple[int, int]) -> np.ndarray:
    """Fill closed loops of corners (x, y), even-odd rule at pixel centres."""
    y, x = np.mgrid[: hw[0], : hw[1]] + 0.5
    crossings = np.zeros(hw, np.int64)
    for loop in loops:
        for (x0, y0), (_, y1) in zip(loop, np.roll(loop, -1, axis=0), strict=True):
            crossings += (x0 > x) & ((y0 > y) != (y1 > y))
    return crossings % 2 == 1


def num_parts(mask: np.ndarray) -> int:
    """Count 4-connected parts, slowly."""
    left = set(zip(*map(np.ndarray.tolist, np.nonzero(mask)), strict=True))
    count = 0
    while left:
        count += 1
        pending = [left.pop()]
        while pending:
            row, column = pending.pop()
            for near in (
                (row + 1, column),
                (row - 1, column),
                (row, column + 1),
                (row, column - 1),
            ):
                if near in left:
                    left.remove(near)
                    pending.append(near)
    return count


def test_plain_fields() -> None:
    results = make_results(random_plane(), random_plane(1))
    assert (results.frame_index, results.frame_hw, len(results)) == (5, HW, 2)
    first, second = results
    assert (first.expression_id, first.text, first.frame_index) == (10, "thing 0", 5)
    assert (first.frame_hw, first.predicted_iou, second.predicted_iou) == (HW, 0.5, 1.0)
    assert results[-1] is second
    assert list(results[:1]) == [first]
    assert "thing 1" in repr(results)


def test_masks_follow_from_the_logits_and_the_threshold() -> None:
    for threshold in (0.0, 0.8):
        (result,) = make_results(random_plane(), threshold=threshold)
        logits = POSTPROCESSOR.logits(random_plane().astype(np.float32))
        np.testing.assert_array_equal(result.logits, logits)
        np.testing.assert_array_equal(result.mask, logits > threshold)
        expected = np.mean(1 / (1 + np.exp(-logits[logits > threshold].astype(np.float64))))
        assert result.mask_confidence == pytest.approx(expected, rel=1e-12)
        assert not result.is_empty
        x0, y0, x1, y1 = result.box_xyxy or (0, 0, 0, 0)
        outside = result.mask.copy()
        outside[y0:y1, x0:x1] = False
        assert not outside.any()
        np.testing.assert_array_equal(mask_from_rle(result.rle), result.mask)


def test_an_empty_mask_has_no_box_no_confidence_and_no_polygons() -> None:
    (result,) = make_results(EMPTY)
    assert result.is_empty
    assert not result.mask.any()
    assert (result.box_xyxy, result.mask_confidence, result.polygons) == (None, None, ())
    assert not mask_from_rle(result.rle).any()


def test_huge_logits_overflow_nowhere() -> None:
    (result,) = make_results(np.full((8, 8), 3e38))
    assert result.mask_confidence == 1.0


def test_the_mask_is_lazy_kept_and_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    logits = Postprocessor.logits

    def counted(self: Postprocessor, low_res: Any) -> np.ndarray:
        calls.append(low_res)
        return logits(self, low_res)

    monkeypatch.setattr(Postprocessor, "logits", counted)
    (result,) = make_results(random_plane())
    assert not calls
    assert result.mask is result.mask
    assert result.mask_confidence
    assert result.polygons is result.polygons
    assert len(calls) == 1
    for array in (result.mask, result.low_res_logits):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    result.logits[0] = 0  # the caller's own
    with pytest.raises(AttributeError, match="cannot assign to field 'text'"):
        result.text = "other"  # type: ignore[misc]


def test_the_label_map_is_that_of_the_logits() -> None:
    results = make_results(random_plane(), random_plane(1), EMPTY)
    logits = np.stack([result.logits for result in results])
    np.testing.assert_array_equal(results.label_map(), label_map_from_logits(logits))
    assert set(np.unique(results.label_map())) == {0, 1, 2}
    assert not FrameResults(0, HW, ()).label_map().any()
    with pytest.raises(UsageError, match="at most 255"):
        make_results(*[EMPTY] * 256).label_map()


def test_a_label_map_never_holds_the_logits_of_all_expressions() -> None:
    hw = (300, 450)
    low_res = np.stack([random_plane(seed) for seed in range(32)]).astype(np.float32)
    raw = RawFrame(0, tuple(range(32)), ("thing",) * 32, low_res, np.zeros(32, np.float32))
    postprocessor = Postprocessor(geometry(hw, PreprocessConfig(32, None)), (8, 8))
    results = frame_results(raw, postprocessor, hw, 0.0)
    tracemalloc.start()
    try:
        label_map = results.label_map()
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(np.unique(label_map)) > 16
    # Some planes of float32, and the masks, which are kept: 1 byte each where logits have 4.
    assert peak_bytes < (8 * 4 + 32) * label_map.size


def test_plots_show_the_mask_and_leave_the_frame() -> None:
    frame = np.full((*HW, 3), 90, np.uint8)
    results = make_results(random_plane(shift=-2), EMPTY)
    for drawn in (results.plot(frame), results[0].plot(frame)):
        assert (drawn.shape, drawn.dtype) == (frame.shape, np.uint8)
        assert (drawn[results[0].mask] != 90).any(axis=-1).all()
    assert (frame == 90).all()
    np.testing.assert_array_equal(results[1].plot(frame), frame)
    with pytest.raises(UsageError, match="the frame's size"):
        results.plot(frame[:-1])


def test_supervision_gets_boxes_masks_and_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    class Detections:
        def __init__(self, **fields: Any) -> None:
            self.fields = fields

        @classmethod
        def empty(cls) -> "Detections":
            return cls()

    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=Detections))
    results = make_results(random_plane(), EMPTY, random_plane(1))
    detections = results.to_supervision().fields
    shown = [results[0], results[2]]
    np.testing.assert_array_equal(detections["xyxy"], [result.box_xyxy for result in shown])
    np.testing.assert_array_equal(detections["mask"], [result.mask for result in shown])
    np.testing.assert_allclose(
        detections["confidence"], [r.mask_confidence for r in shown], rtol=1e-6
    )
    assert detections["tracker_id"].tolist() == detections["class_id"].tolist() == [10, 12]
    assert detections["data"]["text"].tolist() == ["thing 0", "thing 2"]
    assert results[2].to_supervision().fields["tracker_id"].tolist() == [12]
    assert results[1].to_supervision().fields == {}


def test_without_supervision_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UsageError, match=r"to_supervision\(\) needs .*: pip install supervision"):
        make_results(random_plane()).to_supervision()


def test_polygons_filled_again_are_the_mask() -> None:
    rng = np.random.default_rng(0)
    for _ in range(150):
        hw = (int(rng.integers(1, 12)), int(rng.integers(1, 12)))
        mask = rng.random(hw) < rng.random()
        polygons = polygons_from_mask(mask)
        assert len(polygons) == num_parts(mask)
        total = np.zeros(hw, np.int64)
        for polygon in polygons:
            part = even_odd_fill([polygon.exterior, *polygon.holes], hw)
            assert num_parts(part) == 1, "holes belong to the part around them"
            total += part
        np.testing.assert_array_equal(total, mask)


def test_polygons_hold_corners_only_and_turn_as_promised() -> None:
    mask = np.zeros((7, 9), bool)
    mask[1:6, 2:8] = True
    mask[2:5, 3:7] = False
    mask[3, 4] = True
    outer, island = polygons_from_mask(mask)
    assert outer.exterior.tolist() == [[2, 1], [8, 1], [8, 6], [2, 6]]
    assert [hole.tolist() for hole in outer.holes] == [[[3, 2], [3, 5], [7, 5], [7, 2]]]
    assert island.exterior.tolist() == [[4, 3], [5, 3], [5, 4], [4, 4]]
    assert island.holes == ()
    assert outer.exterior.dtype == np.int32


def test_masks_that_come_with_a_label_map_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits are enlarged once for both; which one is asked for first makes no difference."""
    enlarge, calls = Postprocessor.logits, []

    def counted(self: Postprocessor, low_res: np.ndarray) -> np.ndarray:
        calls.append(low_res)
        return enlarge(self, low_res)

    monkeypatch.setattr(Postprocessor, "logits", counted)
    planes = [random_plane(seed) for seed in range(3)]
    one, other = make_results(*planes), make_results(*planes)
    label_map = one.label_map()
    masks = [(result.mask, result.mask_confidence) for result in one]
    assert len(calls) == 3
    expected = [(result.mask, result.mask_confidence) for result in other]
    for (mask, confidence), (plain, plain_confidence) in zip(masks, expected, strict=True):
        np.testing.assert_array_equal(mask, plain)
        assert confidence == plain_confidence
    np.testing.assert_array_equal(label_map, other.label_map())
    label_map[...] = 7  # the caller's own
    np.testing.assert_array_equal(one.label_map(), other.label_map())
