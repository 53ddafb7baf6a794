"""The first resize of the released scripts: docs/format/bundle.md's rule, and PyTorch's float32."""

import numpy as np
import pytest
import torch

from refsam_trt.errors import UsageError
from refsam_trt.image.preprocess import PreprocessConfig, Preprocessor
from refsam_trt.image.resize import axis_table, resize_truncated

SHAPES = [((48, 86), (36, 64)), ((24, 43), (36, 64)), ((30, 70), (30, 41)), ((97, 5), (3, 9))]


def frame_of(hw: tuple[int, int]) -> np.ndarray:
    """Noise with a corner of pure white, where the last bit of a sum decides."""
    frame = np.random.default_rng(0).integers(0, 256, (*hw, 3), np.uint8)
    frame[: hw[0] // 2, : hw[1] // 2] = 255
    return frame


def resized(frame: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    rows, columns = (axis_table(n, m) for n, m in zip(frame.shape[:2], hw, strict=True))
    lines = np.ascontiguousarray(frame.transpose(0, 2, 1))
    return resize_truncated(lines, rows, columns).transpose(0, 2, 1)


def weights(n: int, m: int) -> np.ndarray:
    """Return [m, n], as docs/format/bundle.md writes `w`."""
    out = np.zeros((m, n))
    ratio, support = n / m, max(n / m, 1.0)
    for i in range(m):
        centre = (i + 0.5) * ratio
        for x in range(max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), n)):
            out[i, x] = max(1 - abs(x - centre + 0.5) / support, 0)
    return out / out.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("hw", "new_hw"), SHAPES)
def test_rule_of_the_bundle(hw: tuple[int, int], new_hw: tuple[int, int]) -> None:
    frame = frame_of(hw)
    rows, columns = weights(hw[0], new_hw[0]), weights(hw[1], new_hw[1])
    exact = np.einsum("ih,jw,hwc->ijc", rows, columns, frame.astype(np.float64))
    np.testing.assert_array_equal(resized(frame, new_hw), np.floor(exact + 2.0**-12))


@pytest.mark.parametrize(("hw", "new_hw"), SHAPES)
def test_pytorch_differs_only_where_its_rounding_decides(
    hw: tuple[int, int], new_hw: tuple[int, int]
) -> None:
    frame = frame_of(hw)
    image = torch.from_numpy(frame).permute(2, 0, 1)[None] / 255
    values = torch.nn.functional.interpolate(image, new_hw, mode="bilinear", antialias=True) * 255
    resized_frame, expected = resized(frame, new_hw), values.byte()[0].permute(1, 2, 0).numpy()
    near = (values - values.round()).abs()[0].permute(1, 2, 0).numpy() < 1e-3
    np.testing.assert_array_equal(resized_frame[~near], expected[~near])
    assert np.abs(resized_frame.astype(int) - expected).max() <= 1
    assert (~near).mean() > 0.5


def test_white_stays_white_and_equal_sizes_stay_as_they_are() -> None:
    white = np.full((48, 86, 3), 255, np.uint8)
    assert resized(white, (36, 64)).min() == 255
    frame = frame_of((48, 86))
    np.testing.assert_array_equal(resized(frame, (48, 86)), frame)


def test_only_the_first_of_the_two_resizes_is_truncated() -> None:
    frame = frame_of((48, 86))
    truncated = PreprocessConfig(64, 36, first_resize="truncated")
    halfway = np.ascontiguousarray(resized(frame, (36, 64)))
    expected = Preprocessor((36, 64), PreprocessConfig(64, None))(halfway)
    np.testing.assert_array_equal(Preprocessor((48, 86), truncated)(frame), expected)
    assert (Preprocessor((48, 86), PreprocessConfig(64, 36))(frame) != expected).any()
    # Without a first resize there is nothing to truncate.
    plain = Preprocessor((48, 86), PreprocessConfig(64, None))(frame)
    alike = PreprocessConfig(64, None, first_resize="truncated")
    np.testing.assert_array_equal(Preprocessor((48, 86), alike)(frame), plain)


def test_other_kinds_are_refused() -> None:
    with pytest.raises(
        UsageError, match="first_resize: found 'floor', expected one of rounded, tr"
    ):
        PreprocessConfig(64, first_resize="floor")  # type: ignore[arg-type]
