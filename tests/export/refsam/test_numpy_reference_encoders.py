"""The numpy reference's image encoder and text path: laws and brute force, no PyTorch."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from numpy_reference import Array, layers, random_weights, text, vit
from numpy_reference.random_weights import normal

from refsam_export.refsam.model.config import PRESETS, ModelConfig

TINY = PRESETS["tiny"]
TEXT_DIM = 64
T5_SIZES = {"num_heads": 4, "d_kv": 16}
EXACT = 1e-12  # float64 sums in another order


@pytest.fixture(scope="module")
def weights() -> dict[str, Array]:
    t5 = random_weights.t5_shapes(100, TEXT_DIM, 128, num_layers=2, **T5_SIZES)
    return random_weights.fill(random_weights.model_shapes(TINY, TEXT_DIM) | t5, seed=0)


@pytest.fixture(scope="module")
def image() -> Array:
    return normal(3, TINY.image_size, TINY.image_size, seed=1)


@pytest.fixture(scope="module")
def encoded(weights: dict[str, Array], image: Array) -> tuple[Array, Array]:
    return vit.encode_image(weights, TINY, image)


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 3), (5, 7, 3), (6, 4, 2)])
def test_windows_merge_to_what_was_partitioned(height: int, width: int, size: int):
    x = normal(height, width, 2, seed=0)
    windows = vit.partition(x, size)
    assert len(windows) == math.ceil(height / size) * math.ceil(width / size)
    assert {window.shape for window in windows} == {(size, size, 2)}
    np.testing.assert_array_equal(windows[1][:, 0], x[:size, size])
    np.testing.assert_array_equal(vit.merge(windows, (height, width)), x)


def test_windows_are_padded_with_zeros_at_the_bottom_and_right():
    last = vit.partition(np.ones((8, 8, 1)), 3)[-1]
    np.testing.assert_array_equal(last[..., 0], [[1, 1, 0], [1, 1, 0], [0, 0, 0]])


def test_relative_position_against_four_nested_loops():
    size, dim = 3, 4
    q = normal(size, size, dim, seed=0)
    table_h, table_w = normal(2 * size - 1, dim, seed=1), normal(2 * size - 1, dim, seed=2)
    bias = vit.relative_position(q, table_h, table_w)
    for i, j, row, column in itertools.product(range(size), repeat=4):
        expected = sum(
            q[i, j, d] * (table_h[i - row + size - 1, d] + table_w[j - column + size - 1, d])
            for d in range(dim)
        )
        assert bias[i * size + j, row * size + column] == pytest.approx(expected, abs=EXACT)


def test_vit_attention_against_nested_loops(weights: dict[str, Array]):
    name = "image_encoder.blocks.0.attn"
    x = normal(3, 3, 64, seed=0)
    qkv = layers.linear(weights, f"{name}.qkv", x.reshape(9, 64))
    expected = np.zeros((9, 64))
    for head, query in np.ndindex(4, 9):
        q, k, v = (qkv[:, start + 16 * head :][:, :16] for start in (0, 64, 128))
        tables = weights[f"{name}.rel_pos_h"], weights[f"{name}.rel_pos_w"]
        relative = vit.relative_position(q.reshape(3, 3, 16), *tables)[query]
        powers = np.array([math.exp(q[query] @ k[p] / 4.0 + relative[p]) for p in range(9)])
        expected[query, 16 * head : 16 * head + 16] = powers / powers.sum() @ v
    expected = layers.linear(weights, f"{name}.proj", expected).reshape(3, 3, 64)
    np.testing.assert_allclose(vit.attention(weights, TINY, name, x), expected, atol=EXACT)


def test_adapter_scale_multiplies_the_mlp_adapter(weights: dict[str, Array]):
    x = normal(8, 8, 64, seed=0)
    halved, doubled = (dataclasses.replace(TINY, adapter_scale=scale) for scale in (0.25, 1.0))
    y, y_halved, y_doubled = (
        vit.block(weights, config, 7, x) for config in (TINY, halved, doubled)
    )
    np.testing.assert_allclose(y_doubled - y, 2.0 * (y - y_halved), atol=EXACT)
    assert np.abs(y_doubled - y).max() > 1e-3


def test_embeddings_are_unit_vectors_per_pixel(encoded: tuple[Array, Array]):
    image_embedding, hda_features = encoded
    assert image_embedding.shape == (256, 8, 8)
    assert hda_features.shape == (3, 256, 8, 8)
    for features in (image_embedding, *hda_features):
        np.testing.assert_allclose((features**2).sum(axis=0), 1.0, atol=EXACT)


def test_normalisation_can_be_switched_off(
    weights: dict[str, Array], image: Array, encoded: tuple[Array, Array]
):
    raw = dataclasses.replace(TINY, l2norm_image=False, l2norm_intermediate=False)
    for raw_maps, maps in zip(vit.encode_image(weights, raw, image), encoded, strict=True):
        assert np.abs((raw_maps**2).sum(axis=-3) - 1.0).min() > 1e-3
        np.testing.assert_allclose(layers.l2norm(raw_maps, -3), maps, atol=EXACT)


def test_adapters_with_zero_second_layer_change_nothing(weights: dict[str, Array], image: Array):
    class WithoutAdapters(ModelConfig):
        adapter_blocks = range(0)

    plain = WithoutAdapters(**dataclasses.asdict(TINY))
    zeroed = {key: 0.0 * value if "D_fc2" in key else value for key, value in weights.items()}
    expected, _ = vit.encode_image(weights, plain, image)
    np.testing.assert_array_equal(vit.encode_image(zeroed, TINY, image)[0], expected)
    assert np.abs(vit.encode_image(weights, TINY, image)[0] - expected).max() > 1e-3


def test_one_hda_level_leaves_no_intermediate_map(weights: dict[str, Array], image: Array):
    single = dataclasses.replace(TINY, hda_levels=1)
    _, hda_features = vit.encode_image(weights, single, image)
    assert hda_features.shape == (0, 256, 8, 8)


def test_relative_buckets_against_integer_arithmetic():
    # 8 + floor(8 log(n/8) / log(16)) = 8 + floor(log2(n^2 / 64)) for 32 buckets and distance 128.
    for distance in range(600):
        expected = min(8 + (distance**2 // 64).bit_length() - 1, 15) if distance >= 8 else distance
        assert text.relative_bucket(-distance, 32, 128) == expected
        assert distance == 0 or text.relative_bucket(distance, 32, 128) == 16 + expected


def test_keys_after_the_query_use_the_upper_buckets():
    table = normal(32, 3, seed=0)
    bias = text.position_bias(table, 4, 32, 128)
    np.testing.assert_array_equal(bias[:, 0, 3], table[16 + 3])
    np.testing.assert_array_equal(bias[:, 3, 0], table[3])


def test_t5_sees_word_order_only_through_the_relative_bias(weights: dict[str, Array]):
    ids, order = np.array([5, 17, 42, 9, 1]), np.array([3, 0, 4, 1, 2])
    key = "text_encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    flat = {**weights, key: np.zeros_like(weights[key])}
    plain, shuffled = (text.t5(flat, i, **T5_SIZES) for i in (ids, ids[order]))
    np.testing.assert_allclose(shuffled, plain[order], atol=EXACT)
    plain, shuffled = (text.t5(weights, i, **T5_SIZES) for i in (ids, ids[order]))
    assert np.abs(shuffled - plain[order]).max() > 1e-2


def test_t5_output_has_the_final_norms_mean_square(weights: dict[str, Array]):
    x = text.t5(weights, np.array([3, 1]), **T5_SIZES)
    x = x / weights["text_encoder.encoder.final_layer_norm.weight"]
    np.testing.assert_allclose((x**2).mean(axis=1), 1.0, atol=1e-5)


def test_gated_t5_multiplies_its_two_branches():
    shapes = random_weights.t5_shapes(10, 8, 12, num_layers=1, gated=True, **T5_SIZES)
    gated = random_weights.fill(shapes, seed=3)
    name, x = "text_encoder.encoder.block.0.layer.1.DenseReluDense", normal(4, 8, seed=4)
    doubled = {**gated, f"{name}.wi_1.weight": 2.0 * gated[f"{name}.wi_1.weight"]}
    once, twice = (text.feed_forward(w, name, x, gated=True) for w in (gated, doubled))
    np.testing.assert_allclose(twice, 2.0 * once, atol=EXACT)
    assert text.t5(gated, np.array([2, 1]), gated=True, **T5_SIZES).shape == (2, 8)


def test_sentence_is_the_mlp_of_the_mean_not_the_mean_of_the_words(weights: dict[str, Array]):
    x = normal(5, TEXT_DIM, seed=5)
    words, sentence = text.embed(weights, TINY, x)
    np.testing.assert_allclose((words**2).sum(axis=1), 1.0, atol=EXACT)
    expected, _ = text.embed(weights, TINY, x.mean(axis=0, keepdims=True))
    np.testing.assert_allclose(sentence, expected[0], atol=EXACT)
    assert np.abs(sentence - layers.l2norm(words.mean(axis=0), -1)).max() > 1e-3
    raw_words, _ = text.embed(weights, dataclasses.replace(TINY, l2norm_text=False), x)
    np.testing.assert_allclose(layers.l2norm(raw_words, -1), words, atol=EXACT)
