"""The numpy reference's layers against brute force, its shapes against the specified counts."""

import math

import numpy as np
import pytest
from numpy_reference import layers, random_weights
from numpy_reference.random_weights import normal

from refsam_export.refsam.model.config import PRESETS

EXACT = 1e-12  # float64 sums in another order


def test_gelu_is_the_erf_form():
    x = np.array([[-1.0, 0.0], [1.0, 2.0]])
    expected = [[-0.15865525393145707, 0.0], [0.8413447460685429, 1.9544997361036416]]
    np.testing.assert_allclose(layers.gelu(x), expected, atol=1e-15)


def test_softmax_rows_sum_to_one_and_keep_score_ratios():
    scores = 50.0 * normal(7, 5, seed=0)
    rows = layers.softmax(scores)
    np.testing.assert_allclose(rows.sum(axis=1), 1.0, atol=EXACT)
    ratios = np.log(rows[:, 0] / rows[:, 1])
    np.testing.assert_allclose(ratios, scores[:, 0] - scores[:, 1], atol=1e-10)


@pytest.mark.parametrize("eps", [1e-6, 1e-1])
def test_layer_norm_statistics_before_scale_and_shift(eps: float):
    x = 3.0 + 2.0 * normal(4, 9, seed=0)
    y = layers.layer_norm({"n.weight": np.ones(9), "n.bias": np.zeros(9)}, "n", x, eps)
    np.testing.assert_allclose(y.mean(axis=1), 0.0, atol=EXACT)
    variance = x.var(axis=1)
    np.testing.assert_allclose(y.var(axis=1), variance / (variance + eps), atol=EXACT)


def test_layer_norm_2d_treats_every_pixel_alone():
    weights = {"n.weight": normal(6, seed=1), "n.bias": normal(6, seed=2)}
    x = normal(6, 2, 3, seed=0)
    y = layers.layer_norm_2d(weights, "n", x)
    for i, j in np.ndindex(2, 3):
        pixel = layers.layer_norm(weights, "n", x[:, i, j], eps=1e-6)
        np.testing.assert_allclose(y[:, i, j], pixel, atol=EXACT)


@pytest.mark.parametrize("size", [1, 3])
def test_conv2d_against_nested_loops(size: int):
    kernel, x = normal(2, 3, size, size, seed=0), normal(3, 4, 5, seed=1)
    expected = np.zeros((2, 4, 5))
    for o, i, j, c, di, dj in np.ndindex(2, 4, 5, 3, size, size):
        row, column = i + di - size // 2, j + dj - size // 2
        if 0 <= row < 4 and 0 <= column < 5:
            expected[o, i, j] += kernel[o, c, di, dj] * x[c, row, column]
    np.testing.assert_allclose(layers.conv2d(kernel, x), expected, atol=EXACT)


def test_transposed_convolution_against_brute_force_scatter():
    weights = {"t.weight": normal(3, 2, 2, 2, seed=0), "t.bias": normal(2, seed=1)}
    x = normal(3, 4, 5, seed=2)
    expected = np.zeros((2, 8, 10))
    for c, i, j, o, a, b in np.ndindex(3, 4, 5, 2, 2, 2):
        expected[o, 2 * i + a, 2 * j + b] += x[c, i, j] * weights["t.weight"][c, o, a, b]
    expected += weights["t.bias"][:, None, None]
    np.testing.assert_allclose(layers.transposed_conv2x2(weights, "t", x), expected, atol=EXACT)


def test_l2norm_gives_unit_vectors_and_keeps_zero():
    x = normal(5, 3, seed=0)
    x[2] = 0.0
    np.testing.assert_allclose((layers.l2norm(x, 1) ** 2).sum(axis=1), [1, 1, 0, 1, 1], atol=EXACT)


def size(shapes: random_weights.Shapes, part: str = "") -> int:
    return sum(math.prod(shape) for key, shape in shapes.items() if part in key)


@pytest.mark.parametrize(
    ("name", "encoder", "adapters", "learnable"),
    [
        ("vitb", 89_670_912, 3_550_464, 9_906_916),
        ("vitl", 308_278_272, 12_613_632, 19_166_692),
        ("vith", 637_026_048, 26_265_600, 33_015_268),
    ],
)
def test_shapes_have_the_specified_parameter_counts(
    name: str, encoder: int, adapters: int, learnable: int
):
    shapes = random_weights.model_shapes(PRESETS[name], text_dim=1024)
    assert size(shapes, "_Adapter.") == adapters
    assert size(shapes, "image_encoder.") == encoder + adapters
    assert size(shapes) - encoder - size(shapes, "pe.gaussian") == learnable
    decoder_only = random_weights.decoder_shapes(PRESETS[name])
    assert (len(decoder_only), size(decoder_only)) == (120, 4_058_340)


def test_t5_shapes_have_the_specified_parameter_count():
    shapes = random_weights.t5_shapes(32128, 1024, 16384, num_heads=32, d_kv=128, num_layers=24)
    assert size(shapes) == 1_240_909_824
