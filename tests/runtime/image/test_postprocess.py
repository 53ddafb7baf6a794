"""Logits back to the frame: composed matrices against the chain taken step by step."""

import tracemalloc

import numpy as np
import pytest
import shared_data
from PIL import Image

from refsam_trt.errors import BackendError, UsageError
from refsam_trt.image.postprocess import (
    Postprocessor,
    box_xyxy_from_mask,
    label_map_from_logits,
    mask_from_logits,
)
from refsam_trt.image.preprocess import PreprocessConfig, geometry


def naive_bilinear(image, hw):
    """Half-pixel bilinear, edges repeated, one output pixel at a time, float64."""
    height, width = image.shape
    out = np.empty(hw)
    for i in range(hw[0]):
        y = max(0.0, (i + 0.5) * height / hw[0] - 0.5)
        y0, y1 = int(y), min(int(y) + 1, height - 1)
        for j in range(hw[1]):
            x = max(0.0, (j + 0.5) * width / hw[1] - 0.5)
            x0, x1 = int(x), min(int(x) + 1, width - 1)
            top = image[y0, x0] * (1 - x + x0) + image[y0, x1] * (x - x0)
            low = image[y1, x0] * (1 - x + x0) + image[y1, x1] * (x - x0)
            out[i, j] = top * (1 - y + y0) + low * (y - y0)
    return out


def naive_chain(low_res, sizes, mode):
    step = naive_bilinear(low_res.astype(np.float64), (sizes.image_size, sizes.image_size))
    step = step[: sizes.resized_hw[0], : sizes.resized_hw[1]]
    if mode == "chained":
        step = naive_bilinear(step, sizes.downscaled_hw)
    return naive_bilinear(step, sizes.original_hw)


def random_low_res(hw=(16, 16), seed=0):
    return np.random.default_rng(seed).normal(0, 8, hw).astype(np.float32)


@pytest.mark.parametrize("mode", ["chained", "direct"])
@pytest.mark.parametrize("hw", [(30, 50), (50, 30), (40, 40), (70, 21), (7, 33)])
@pytest.mark.parametrize("short_side", [24, None])
def test_logits_equal_the_chain_step_by_step(hw, mode, short_side):
    sizes = geometry(hw, PreprocessConfig(64, short_side))
    low_res = random_low_res((16, 13))
    result = Postprocessor(sizes, (16, 13), mode).logits(low_res)
    assert result.dtype == np.float32
    # float32 matrices and sums of logits up to about 30
    np.testing.assert_allclose(result, naive_chain(low_res, sizes, mode), rtol=0, atol=2e-5)


def torch_chain(low_res, sizes, mode):
    torch = pytest.importorskip("torch")

    def resize(x, hw):
        return torch.nn.functional.interpolate(x, hw, mode="bilinear", align_corners=False)

    x = resize(torch.from_numpy(low_res)[None, None], (sizes.image_size, sizes.image_size))
    x = x[..., : sizes.resized_hw[0], : sizes.resized_hw[1]]
    if mode == "chained":
        x = resize(x, sizes.downscaled_hw)
    return resize(x, sizes.original_hw)[0, 0].numpy()


@pytest.mark.parametrize("mode", ["chained", "direct"])
@pytest.mark.parametrize("hw", [(480, 854), (854, 480), (1080, 1920), (240, 432)])
def test_logits_equal_torch_at_real_sizes(hw, mode):
    sizes = geometry(hw, PreprocessConfig(1024))
    low_res = random_low_res((256, 256))
    logits = Postprocessor(sizes, (256, 256), mode).logits(low_res)
    # torch rounds positions and every step to float32; numpy and torch differ by up to 1e-3
    np.testing.assert_allclose(logits, torch_chain(low_res, sizes, mode), rtol=0, atol=2e-3)


def test_real_masks_survive_the_way_down_and_up_also_turned():
    path = shared_data.path("ref-davis-mini", "valid", "Annotations", "dog", "00000.png")
    upright = np.array(Image.open(path)) > 0
    for mask in (upright, np.rot90(upright)):
        sizes = geometry(mask.shape, PreprocessConfig(1024))
        height, width = (side // 4 for side in sizes.resized_hw)
        small = Image.fromarray(mask).convert("L").resize((width, height), 4)
        low_res = np.full((256, 256), -5, np.float32)
        low_res[:height, :width] = np.asarray(small, np.float32) / 25.5 - 5
        back = mask_from_logits(Postprocessor(sizes, (256, 256)).logits(low_res))
        assert (back & mask).sum() / (back | mask).sum() > 0.95


def test_direct_differs_from_chained():
    sizes = geometry((480, 854), PreprocessConfig(1024))
    low_res = random_low_res((256, 256))
    both = [
        Postprocessor(sizes, (256, 256), mode).logits(low_res) for mode in ("chained", "direct")
    ]
    assert np.abs(both[0] - both[1]).max() > 0.1


def test_what_lies_under_the_padding_has_no_effect():
    sizes = geometry((30, 60), PreprocessConfig(64, 24))
    postprocessor = Postprocessor(sizes, (16, 16))
    low_res = random_low_res()
    changed = low_res.copy()
    changed[9:] += 100  # rows 0..31 of 64 hold the frame: 8 of 16 and one neighbour
    np.testing.assert_array_equal(postprocessor.logits(low_res), postprocessor.logits(changed))


def test_low_res_logits_that_cannot_be_used_are_refused():
    postprocessor = Postprocessor(geometry((30, 60), PreprocessConfig(64, 24)), (16, 16))
    with pytest.raises(UsageError, match=r"found float32 \(16, 17\), expected float32 \(16, 16\)"):
        postprocessor.logits(np.zeros((16, 17), np.float32))
    with pytest.raises(UsageError, match="found float64"):
        postprocessor.logits(np.zeros((16, 16)))
    low_res = random_low_res()
    low_res[3, 4], low_res[15, 15] = np.nan, np.inf
    with pytest.raises(BackendError, match="found 2 values that are not finite"):
        postprocessor.logits(low_res)


def test_unknown_modes_and_sizes_are_refused():
    sizes = geometry((30, 60), PreprocessConfig(64, 24))
    with pytest.raises(UsageError, match="found 'nearest', expected 'chained' or 'direct'"):
        Postprocessor(sizes, (16, 16), "nearest")
    with pytest.raises(UsageError, match=r"found \(0, 16\)"):
        Postprocessor(sizes, (0, 16))


def test_a_mask_holds_what_is_above_the_threshold():
    logits = np.array([-1, 0, 0.005, 0.01, 2], np.float32)
    assert mask_from_logits(logits).tolist() == [False, False, True, True, True]
    assert mask_from_logits(logits, np.float32(0.01)).tolist() == [False] * 4 + [True]


def argmax_label_map(logits, background):
    planes = np.concatenate([np.full((1, *logits.shape[1:]), background, logits.dtype), logits])
    planes[1:][planes[1:] < 0] = 0
    return planes.argmax(axis=0).astype(np.uint8)


@pytest.mark.parametrize("num_expressions", [1, 2, 5])
@pytest.mark.parametrize("background", [0.1, 0.0, 0.5])
def test_label_maps_equal_the_argmax_ties_included(num_expressions, background):
    rng = np.random.default_rng(num_expressions)
    shape = (num_expressions, 40, 30)
    for logits in (rng.normal(0, 1, shape), rng.integers(-2, 4, shape) / 10):
        logits = logits.astype(np.float32)
        expected = argmax_label_map(logits, background)
        for planes in (logits, iter(logits)):
            label_map = label_map_from_logits(planes, background)
            np.testing.assert_array_equal(label_map, expected, strict=True)


def test_label_maps_need_the_memory_of_a_few_planes_only():
    shape = (90, 160)
    planes = (random_low_res(shape, seed) for seed in range(64))
    tracemalloc.start()
    try:
        label_map = label_map_from_logits(planes)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    stacked = np.stack([random_low_res(shape, seed) for seed in range(64)])
    np.testing.assert_array_equal(label_map, label_map_from_logits(stacked))
    # float64 random numbers are made on the way to float32: 2 planes more
    assert peak_bytes < 8 * stacked[0].nbytes


def test_label_maps_of_no_and_of_many_expressions():
    logits = np.eye(255, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(label_map_from_logits(logits)[0], np.arange(1, 256))
    with pytest.raises(UsageError, match=r"plane 256 has shape \(1, 1\), expected at most 255"):
        label_map_from_logits(np.zeros((256, 1, 1), np.float32))
    with pytest.raises(UsageError, match=r"plane 1 has shape \(3,\), .* planes \[H, W\]"):
        label_map_from_logits(np.zeros((2, 3), np.float32))
    with pytest.raises(UsageError, match=r"plane 2 has shape \(1, 3\), .* all of one shape"):
        label_map_from_logits([np.zeros((2, 3), np.float32), np.zeros((1, 3), np.float32)])
    with pytest.raises(UsageError, match="logits: found no plane, expected one"):
        label_map_from_logits([])
    with pytest.raises(UsageError, match=r"background: found -0.1"):
        label_map_from_logits(np.zeros((1, 2, 3), np.float32), -0.1)


def test_boxes_hold_the_mask_tightly():
    mask = np.zeros((6, 9), bool)
    assert box_xyxy_from_mask(mask) is None
    mask[2, 3] = True
    assert box_xyxy_from_mask(mask) == (3, 2, 4, 3)
    mask[5, 8] = mask[4, 0] = True
    box = box_xyxy_from_mask(mask)
    assert box == (0, 2, 9, 6)
    assert all(type(side) is int for side in box)
    x0, y0, x1, y1 = box
    assert mask[y0:y1, x0:x1].sum() == mask.sum()
