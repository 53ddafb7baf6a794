"""Frames into network inputs: the integer rule against slow twins and, where it agrees, Pillow."""

import msgspec
import numpy as np
import pytest
import shared_data
from PIL import Image

from refsam_trt.errors import UsageError, VideoError
from refsam_trt.image.preprocess import PreprocessConfig, Preprocessor, geometry
from refsam_trt.image.resize import axis_table, resize_columns, resize_rows

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)
REAL_FRAMES = [
    ("ref-davis-mini", "valid", "JPEGImages", "dog", "00000.jpg"),
    ("ref-davis-mini", "valid", "JPEGImages", "schoolgirls", "00010.jpg"),
    ("photos", "truck.jpg"),
    ("photos", "groceries.jpg"),
]


def real_frame(*parts):
    with Image.open(shared_data.path(*parts)) as image:
        return np.array(image.convert("RGB"))


def random_frame(hw, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


def weights_by_the_rule(n, m):
    """Integer weights of one axis, {input: weight} per output, spelled out from the rule."""
    ratio = n / m
    support = max(ratio, 1.0)
    outputs = []
    for i in range(m):
        centre = (i + 0.5) * ratio
        inputs = range(max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), n))
        weights = [max(1 - abs(x - centre + 0.5) / support, 0) for x in inputs]
        total = sum(weights)
        scaled = [int(w / total * 2**22 + 0.5) for w in weights]
        outputs.append(dict(zip(inputs, scaled, strict=True)))
    return outputs


def slow_axis(values, m):
    """Resize a list of 0..255 to m values, one Python integer at a time."""
    if len(values) == m:
        return values
    return [
        min(max((sum(w * values[x] for x, w in taps.items()) + 2**21) >> 22, 0), 255)
        for taps in weights_by_the_rule(len(values), m)
    ]


def slow_resize(plane, hw):
    rows = [slow_axis(row, hw[1]) for row in plane.tolist()]
    columns = [slow_axis(list(column), hw[0]) for column in zip(*rows, strict=True)]
    return np.array(columns, np.uint8).T


def dense_resize(plane, hw):
    """The rule as two matrix products; float64 holds every sum of integers exactly."""
    for axis in (1, 0):
        n, m = plane.shape[axis], hw[axis]
        if n != m:
            matrix = np.zeros((m, n))
            for i, taps in enumerate(weights_by_the_rule(n, m)):
                matrix[i, list(taps)] = list(taps.values())
            moved = np.moveaxis(plane.astype(np.float64), axis, 0)
            sums = np.moveaxis(matrix @ moved, 0, axis)
            plane = np.clip((sums + 2**21) // 2**22, 0, 255).astype(np.uint8)
    return plane


def network_input(frame, config, resize):
    """The whole of section 2.2, a channel at a time, with the resize given."""
    sizes = geometry(frame.shape[:2], config)
    image = np.zeros((1, 3, config.image_size, config.image_size), np.float32)
    for channel in range(3):
        plane = resize(resize(frame[..., channel], sizes.downscaled_hw), sizes.resized_hw)
        normalised = (plane.astype(np.float32) - MEAN[channel]) / STD[channel]
        image[0, channel, : plane.shape[0], : plane.shape[1]] = normalised
    return image


def pillow_resize(plane, hw):
    image = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(image.resize(hw[::-1], Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
    ("original", "downscaled", "resized"),
    [
        ((480, 854), (360, 640), (576, 1024)),
        ((720, 1280), (360, 640), (576, 1024)),
        ((480, 640), (360, 480), (768, 1024)),
        ((1280, 720), (640, 360), (1024, 576)),
        ((480, 910), (360, 682), (541, 1024)),
        ((240, 432), (360, 648), (569, 1024)),
        ((360, 500), (360, 500), (737, 1024)),
        ((400, 400), (360, 360), (1024, 1024)),
        ((500, 901), (360, 648), (569, 1024)),  # 648.72
        ((901, 500), (648, 360), (1024, 569)),
    ],
)
def test_sizes_are_those_of_the_specification(original, downscaled, resized):
    sizes = geometry(original, PreprocessConfig(1024))
    assert (sizes.original_hw, sizes.downscaled_hw, sizes.resized_hw, sizes.image_size) == (
        original,
        downscaled,
        resized,
        1024,
    )


def test_without_downscaling_the_frame_goes_straight_to_the_long_side():
    sizes = geometry((480, 854), PreprocessConfig(1024, downscale_short_side=None))
    assert sizes.downscaled_hw == (480, 854)
    assert sizes.resized_hw == (576, 1024)


@pytest.mark.parametrize("seed", range(12))
def test_resize_equals_the_slow_twin_on_random_shapes(seed):
    rng = np.random.default_rng(seed)
    hw, new_hw = rng.integers(1, 40, 2), rng.integers(1, 40, 2)
    check_resize(tuple(map(int, hw)), tuple(map(int, new_hw)), seed)


@pytest.mark.parametrize(
    ("hw", "new_hw"),
    [
        ((300, 3), (40, 2)),  # very tall, shrinking: Pillow 13 would take the rows first
        ((3, 300), (2, 40)),
        ((2, 2), (60, 1)),
        ((1, 1), (9, 7)),
        ((64, 48), (32, 48)),  # one axis is skipped
        ((64, 48), (64, 90)),
        ((500, 2), (1, 1)),
    ],
)
def test_resize_equals_the_slow_twin_on_awkward_shapes(hw, new_hw):
    check_resize(hw, new_hw, 0)


def check_resize(hw, new_hw, seed):
    frame = random_frame(hw, seed)
    frame[frame < 60] = 0  # rounding is hardest at the ends of the range
    frame[frame > 200] = 255
    lines = np.ascontiguousarray(frame.transpose(0, 2, 1))
    lines = resize_columns(lines, axis_table(hw[1], new_hw[1]))
    lines = resize_rows(lines, axis_table(hw[0], new_hw[0]))
    for channel in range(3):
        np.testing.assert_array_equal(
            lines[:, channel], slow_resize(frame[..., channel], new_hw), strict=True
        )


def test_an_axis_that_keeps_its_size_has_no_table():
    assert axis_table(7, 7) is None


@pytest.mark.parametrize("hw", [(24, 40), (40, 24), (20, 20), (9, 70), (70, 9), (16, 33)])
@pytest.mark.parametrize("short_side", [16, 24, None])
def test_preprocessor_equals_the_slow_twin(hw, short_side):
    config = PreprocessConfig(48, short_side)
    frame = random_frame(hw)
    image = Preprocessor(hw, config)(frame)
    np.testing.assert_array_equal(image, network_input(frame, config, slow_resize), strict=True)


@pytest.mark.parametrize("parts", REAL_FRAMES)
def test_real_landscape_frames_equal_pillow(parts):
    frame = real_frame(*parts)
    config = PreprocessConfig(1024)
    image = Preprocessor(frame.shape[:2], config)(frame)
    np.testing.assert_array_equal(image, network_input(frame, config, pillow_resize), strict=True)


@pytest.mark.parametrize("hw", [(480, 854), (720, 1280), (1080, 1920), (240, 432)])
def test_random_landscape_frames_equal_pillow(hw):
    frame = random_frame(hw)
    config = PreprocessConfig(1024)
    image = Preprocessor(hw, config)(frame)
    np.testing.assert_array_equal(image, network_input(frame, config, pillow_resize), strict=True)


@pytest.mark.parametrize("parts", REAL_FRAMES[:3])
def test_turned_frames_keep_to_the_rule_and_within_a_level_of_pillow(parts):
    frame = np.rot90(real_frame(*parts))
    config = PreprocessConfig(1024)
    image = Preprocessor(frame.shape[:2], config)(frame)
    np.testing.assert_array_equal(image, network_input(frame, config, dense_resize), strict=True)
    pillow = network_input(frame, config, pillow_resize)
    # Pillow may take the rows first on tall shapes: one grey level in each of the two resizes.
    assert np.abs((image - pillow) * STD[:, None, None]).max() <= 2.001


def test_a_given_output_is_wholly_overwritten_and_returned():
    preprocessor = Preprocessor((30, 50), PreprocessConfig(64, 20))
    out = np.full((1, 3, 64, 64), np.nan, np.float32)
    frame = random_frame((30, 50))
    assert preprocessor(frame, out) is out
    np.testing.assert_array_equal(out, preprocessor(frame))
    height, width = preprocessor.geometry.resized_hw
    assert (height, width) == (39, 64)
    assert not out[:, :, height:].any()


def test_strided_and_read_only_frames_are_taken_as_they_are():
    preprocessor = Preprocessor((30, 50), PreprocessConfig(64, 20))
    frame = random_frame((60, 50))[::-2]
    frame.flags.writeable = False
    np.testing.assert_array_equal(preprocessor(frame), preprocessor(frame.copy()))


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (np.zeros((30, 50, 3), np.float32), "found float32 [30 x 50 x 3]"),
        (np.zeros((30, 50), np.uint8), "found uint8 [30 x 50]"),
        (np.zeros((30, 50, 4), np.uint8), "found uint8 [30 x 50 x 4]"),
        (np.zeros((50, 30, 3), np.uint8), "found uint8 [50 x 30 x 3]"),
        (np.zeros((0, 50, 3), np.uint8), "found uint8 [0 x 50 x 3]"),
        ([[0]], "found list"),
    ],
)
def test_other_frames_are_refused(frame, text):
    preprocessor = Preprocessor((30, 50), PreprocessConfig(64, 20))
    with pytest.raises(VideoError) as error:
        preprocessor(frame)
    assert text in str(error.value)
    assert "uint8 [30 x 50 x 3], RGB" in str(error.value)


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((1, 3, 64, 64)),
        np.zeros((3, 64, 64), np.float32),
        np.zeros((1, 64, 64, 3), np.float32).transpose(0, 3, 1, 2),
        np.broadcast_to(np.float32(0), (1, 3, 64, 64)),
    ],
)
def test_other_outputs_are_refused(out):
    preprocessor = Preprocessor((30, 50), PreprocessConfig(64, 20))
    with pytest.raises(UsageError, match=r"expected a writable, C-contiguous float32 \[1 x 3 x 64"):
        preprocessor(random_frame((30, 50)), out)


@pytest.mark.parametrize(
    ("hw", "text"),
    [
        ((0, 50), "found 0 x 50 pixels, expected at least 1 x 1"),
        ((50, 0), "found 50 x 0 pixels, expected at least 1 x 1"),
        ((1, 3000), "found 1 x 3000 pixels, which need 360 x 1080000"),
        ((9000, 9000), "found 9000 x 9000 pixels, which need 9000 x 9000"),
    ],
)
def test_sizes_that_cannot_be_served_are_refused(hw, text):
    with pytest.raises(VideoError) as error:
        geometry(hw, PreprocessConfig(1024))
    assert text in str(error.value)


def test_a_frame_of_which_nothing_would_be_left_is_refused():
    with pytest.raises(VideoError, match="too narrow for a network input of 1024"):
        geometry((1, 3000), PreprocessConfig(1024, None))


def test_the_configuration_survives_json():
    config = PreprocessConfig(1024, None, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert msgspec.json.decode(msgspec.json.encode(config), type=PreprocessConfig) == config


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"image_size": 15}, "image_size: found 15, expected a whole number of pixels from 16"),
        ({"image_size": 9000}, "to 8192"),
        ({"downscale_short_side": 0}, "downscale_short_side: found 0"),
        ({"mean": (1.0, 2.0)}, "mean: found (1.0, 2.0), expected three finite numbers"),
        ({"mean": (1.0, 2.0, float("nan"))}, "mean: found"),
        ({"std": (1.0, 0.0, 1.0)}, "above 0.0"),
    ],
)
def test_other_configurations_are_refused(change, text):
    with pytest.raises(UsageError) as error:
        PreprocessConfig(**{"image_size": 64, **change})
    assert text in str(error.value)
