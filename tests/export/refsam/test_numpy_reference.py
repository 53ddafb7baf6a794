"""The numpy reference's HDA, decoder, ITM and whole frame: laws and brute force, no PyTorch."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from numpy_reference import Array, decoder, hda, itm, layers, random_weights, run_frame, text
from numpy_reference.random_weights import normal

from refsam_export.refsam.model.config import PRESETS

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
def encoded() -> tuple[Array, Array]:
    image_embedding, hda_features = normal(256, 8, 8, seed=2), normal(3, 256, 8, 8, seed=3)
    return layers.l2norm(image_embedding, 0), layers.l2norm(hda_features, 1)


@pytest.fixture(scope="module")
def embedding() -> tuple[Array, Array]:
    return layers.l2norm(normal(5, 256, seed=4), -1), layers.l2norm(normal(256, seed=5), -1)


def test_hda_attention_is_bounded_and_not_flat(
    encoded: tuple[Array, Array], embedding: tuple[Array, Array]
):
    rows = hda.attention(encoded[0], *embedding)
    assert rows.shape == (64, 6)
    np.testing.assert_allclose(rows.sum(axis=1), 1.0, atol=EXACT)
    ratios = rows.max(axis=1) / rows.min(axis=1)
    assert ratios.max() <= math.exp(1 / 8)
    assert ratios.min() > 1.001


def test_hda_attention_against_nested_loops():
    features, words, sentence = (
        normal(256, 2, 3, seed=0),
        normal(2, 256, seed=1),
        normal(256, seed=2),
    )
    rows = hda.attention(features, words, sentence)
    for i, j in np.ndindex(2, 3):
        powers = [math.exp(features[:, i, j] @ token / 16.0) for token in (*words, sentence)]
        np.testing.assert_allclose(rows[3 * i + j], np.array(powers) / sum(powers), atol=EXACT)


def test_dense_attention_sums_the_levels_image_columns_first(
    encoded: tuple[Array, Array], embedding: tuple[Array, Array]
):
    image_embedding, hda_features = encoded
    pick_image = np.hstack([np.eye(256), np.zeros((256, 256))])[:, :, None, None]
    pick_language = np.roll(pick_image, 256, axis=1)
    names = ("dense_conv", *(f"dense_conv2.{level}" for level in range(3)))
    picked = {f"{name}.weight": pick_image for name in names}
    picked |= {f"{name}.bias": np.full(256, 0.25) for name in names}
    dense = hda.dense_attention(picked, TINY, *encoded, *embedding)
    np.testing.assert_allclose(dense, image_embedding + hda_features.sum(axis=0) + 1.0, atol=EXACT)
    picked["dense_conv.weight"] = pick_language
    single = dataclasses.replace(TINY, hda_levels=1)
    dense = hda.dense_attention(picked, single, *encoded, *embedding)
    pixel = hda.attention(image_embedding, *embedding)[11] @ np.vstack(embedding)
    np.testing.assert_allclose(dense[:, 1, 3], pixel + 0.25, atol=EXACT)


def test_position_encoding_takes_x_first():
    gaussian = np.zeros((2, 128))
    gaussian[0] = 0.125
    encoding = decoder.position_encoding(gaussian, 4)
    np.testing.assert_array_equal(encoding[:, 0], encoding[:, 3])
    angles = np.pi / 4 * np.array([-0.75, -0.25, 0.25, 0.75])
    np.testing.assert_allclose(encoding[0, 2], np.sin(angles), atol=EXACT)
    np.testing.assert_allclose(encoding[128, 2], np.cos(angles), atol=EXACT)


def test_word_order_and_the_track_tokens_place_do_not_matter(
    weights: dict[str, Array], encoded: tuple[Array, Array], embedding: tuple[Array, Array]
):
    image_embedding, hda_features = encoded
    words, sentence = embedding
    dense = hda.dense_attention(weights, TINY, image_embedding, hda_features, words, sentence)
    track = normal(256, seed=6)
    expected = decoder.decode(weights, TINY, image_embedding, dense, words, track)
    order = [2, 0, 4, 3, 1]
    shuffled = hda.dense_attention(
        weights, TINY, image_embedding, hda_features, words[order], sentence
    )
    moved = decoder.decode(
        weights, TINY, image_embedding, shuffled, np.vstack([words[order], track]), None
    )
    for found, wanted in zip(moved, expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-11)


def test_decode_reads_words_track_token_and_every_mask_token(
    weights: dict[str, Array], encoded: tuple[Array, Array], embedding: tuple[Array, Array]
):
    image_embedding, dense = encoded[0], 0.1 * normal(256, 8, 8, seed=7)
    words, _ = embedding
    logits, iou, main_mask_token = decoder.decode(
        weights, TINY, image_embedding, dense, words, None
    )
    assert (logits.shape, iou.shape, main_mask_token.shape) == ((4, 32, 32), (4,), (256,))
    for other_words, track in ((words[:3], None), (words, normal(256, seed=8))):
        other, _, _ = decoder.decode(weights, TINY, image_embedding, dense, other_words, track)
        assert np.abs(other - logits).max() > 1e-3
    name = "mask_decoder.output_hypernetworks_mlps"
    first = {key: weights[key] for key in weights if key.startswith(f"{name}.0.")}
    same = {key.replace(f"{name}.0", f"{name}.{i}"): first[key] for key in first for i in range(4)}
    alike, _, _ = decoder.decode({**weights, **same}, TINY, image_embedding, dense, words, None)
    for one, two in itertools.combinations(range(4), 2):
        assert np.abs(alike[one] - alike[two]).max() > 1e-3


def test_decoder_attention_against_nested_loops(weights: dict[str, Array]):
    name = "mask_decoder.transformer.final_attn_token_to_image"
    queries, keys, values = normal(3, 256, seed=0), normal(5, 256, seed=1), normal(5, 256, seed=2)
    q, k, v = (
        layers.linear(weights, f"{name}.{part}_proj", x)
        for part, x in (("q", queries), ("k", keys), ("v", values))
    )
    expected = np.zeros((3, 128))
    for head, query in np.ndindex(8, 3):
        part = slice(16 * head, 16 * head + 16)
        powers = np.array([math.exp(q[query, part] @ k[p, part] / 4.0) for p in range(5)])
        expected[query, part] = powers / powers.sum() @ v[:, part]
    expected = layers.linear(weights, f"{name}.out_proj", expected)
    found = decoder.attention(weights, name, queries, keys, values)
    np.testing.assert_allclose(found, expected, atol=EXACT)


def test_image_embedding_and_dense_prompt_enter_as_their_sum(
    weights: dict[str, Array], encoded: tuple[Array, Array], embedding: tuple[Array, Array]
):
    dense = 0.1 * normal(256, 8, 8, seed=7)
    one = decoder.decode(weights, TINY, encoded[0], dense, embedding[0], None)
    two = decoder.decode(weights, TINY, encoded[0] + dense, 0.0 * dense, embedding[0], None)
    for found, wanted in zip(two, one, strict=True):
        np.testing.assert_allclose(found, wanted, atol=EXACT)


def test_each_mask_belongs_to_its_own_token_and_hypernetwork(
    weights: dict[str, Array], encoded: tuple[Array, Array], embedding: tuple[Array, Array]
):
    rows, name = [0, 2, 1, 3], "mask_decoder.output_hypernetworks_mlps"
    swapped = {
        **weights,
        "mask_decoder.mask_tokens.weight": weights["mask_decoder.mask_tokens.weight"][rows],
    }
    for old, new in ((1, 2), (2, 1)):
        for key in (key for key in weights if key.startswith(f"{name}.{old}.")):
            swapped[key.replace(f"{name}.{old}.", f"{name}.{new}.")] = weights[key]
    dense = 0.1 * normal(256, 8, 8, seed=7)
    logits, iou, main = decoder.decode(weights, TINY, encoded[0], dense, embedding[0], None)
    found = decoder.decode(swapped, TINY, encoded[0], dense, embedding[0], None)
    for array, wanted in zip(found, (logits[rows], iou, main), strict=True):
        np.testing.assert_allclose(array, wanted, atol=1e-11)


def test_itm_without_its_update_is_a_layer_norm(weights: dict[str, Array]):
    token = normal(256, seed=9)
    idle = {key: 0.0 * value if "linear2" in key else value for key, value in weights.items()}
    expected = layers.layer_norm(weights, "track_token_mlp.norm", token, eps=1e-5)
    np.testing.assert_array_equal(itm.ffn(idle, token), expected)
    assert np.abs(itm.ffn(weights, token) - expected).max() > 1e-2


def test_run_frame_chains_frames_through_the_track_token(
    weights: dict[str, Array], image: Array, embedding: tuple[Array, Array]
):
    logits, iou, track = run_frame(weights, TINY, image, *embedding, None)
    assert (logits.shape, iou.shape, track.shape) == ((1, 32, 32), (1,), (256,))
    second, _, next_track = run_frame(weights, TINY, image, *embedding, track)
    assert {array.dtype for array in (logits, iou, track, second)} == {np.dtype(np.float64)}
    assert np.abs(second - logits).max() > 1e-3
    assert np.abs(next_track - track).max() > 1e-3


def test_every_weight_is_read(weights: dict[str, Array], image: Array):
    read: set[str] = set()

    class Recorder(dict[str, Array]):
        def __getitem__(self, key: str) -> Array:
            read.add(key)
            return super().__getitem__(key)

    recorder = Recorder(weights)
    x = text.t5(recorder, np.array([5, 1]), **T5_SIZES)
    run_frame(recorder, TINY, image, *text.embed(recorder, TINY, x), None)
    assert read == set(weights)


def test_random_weights_hide_nothing_behind_zeros_or_ones(weights: dict[str, Array]):
    for key, value in weights.items():
        assert np.abs(value).max() > 1e-3, key
        assert value.std() > 1e-3, key
