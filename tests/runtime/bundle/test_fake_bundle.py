"""The stand-in bundle behaves like a real one where a runtime can tell the difference."""

from pathlib import Path

import fake_bundle
import numpy as np
import pytest
from tokenizers import Tokenizer

from refsam_trt.contract import refsam

Arrays = dict[str, np.ndarray]


def encode(folder: Path, expressions: list[str], num_pads: int = 0) -> Arrays:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [tokenizer.encode(expression).ids for expression in expressions]
    length = max(map(len, ids)) + num_pads
    input_ids = np.array([row + [fake_bundle.PAD_ID] * (length - len(row)) for row in ids])
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in ids])
    text = fake_bundle.run_graph(
        folder, refsam.TEXT_ENCODER, {"input_ids": input_ids, "attention_mask": mask}
    )
    return text | {"word_mask": mask.astype(bool)}


def step(folder: Path, text: Arrays, *, seed: int = 0, track: float | None = None) -> Arrays:
    image = np.random.default_rng(seed).standard_normal((1, 3, 32, 32)).astype(np.float32)
    frame = fake_bundle.run_graph(folder, refsam.IMAGE_ENCODER, {"image": image})
    num_expressions = len(text["sentence"])
    state = {
        "track_token": np.full((num_expressions, 256), track or 3e4, np.float32),
        "has_track": np.full(num_expressions, track is not None),
    }
    return fake_bundle.run_graph(folder, refsam.DECODER_STEP, frame | text | state)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("fake") / "baseline")


def test_tokenizer_gives_one_token_per_byte(baseline: Path):
    tokenizer = Tokenizer.from_file(str(baseline / "tokenizer.json"))
    assert tokenizer.encode("a é").ids == [byte + 3 for byte in "a é".encode()] + [1]


def test_splits_agree(baseline: Path, tmp_path: Path):
    optimised = fake_bundle.make_bundle(tmp_path / "b", split="optimised", external_data=True)
    results = [
        step(folder, encode(folder, ["a dog"]), track=1.0) for folder in (baseline, optimised)
    ]
    for name, array in results[0].items():
        np.testing.assert_allclose(results[1][name], array, atol=1e-5, err_msg=name)


def test_padding_and_batching_change_nothing(baseline: Path):
    alone = step(baseline, encode(baseline, ["a dog"]))
    batched = step(baseline, encode(baseline, ["a dog", "the cat on the left"], num_pads=2))
    for name, array in alone.items():
        np.testing.assert_allclose(batched[name][:1], array, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("change", ["expression", "frame", "track"])
def test_frame_text_and_track_token_matter(baseline: Path, change: str):
    before = step(baseline, encode(baseline, ["a dog"]))["low_res_logits"]
    after = step(
        baseline,
        encode(baseline, ["a cat" if change == "expression" else "a dog"]),
        seed=1 if change == "frame" else 0,
        track=1.0 if change == "track" else None,
    )["low_res_logits"]
    assert 0.05 < (before > 0).mean() < 0.95
    assert np.abs(after - before).max() > 0.01 * np.abs(before).max()
