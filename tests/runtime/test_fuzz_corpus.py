"""The fuzzer's seeds and former findings, run once each; `make prove` goes on from them."""

import json
from pathlib import Path

import fuzz_targets
import pytest
from fuzz_targets import TARGETS

CORPUS = Path(__file__).resolve().parents[1] / "corpus"
MAX_BYTES = 8192
# How often a file that is sound is refused on its way: a manifest only with the wrong hashes.
SOUND = {
    "manifest/baseline.json": 1,
    "state/two.json": 0,
    "state/fresh.json": 0,
    "text-cache/two.json": 0,
    "text-disk/dog.json": 0,
    "rle/compressed.json": 0,
    "rle/uncompressed.json": 0,
    "rle/string": 0,
    "onnx/decoder_step.onnx": 0,
    "tokenizer/words.json": 0,
    "tokenizer/bpe.json": 0,
    "dataset/davis.json": 0,
    "image/exif.jpg": 0,
    "image/exif-that-cannot-be-written": 0,
    "image/palette.png": 0,
    "image/rgb.bmp": 0,
    "image/rgb.webp": 0,
    "video/h264.mp4": 0,
    "video/vp9.webm": 0,
}


def test_every_target_has_a_small_corpus():
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
    for folder in CORPUS.iterdir():
        assert 0 < sum(path.stat().st_size for path in folder.iterdir()) <= MAX_BYTES


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_read_or_refused(name: str, tmp_path: Path):
    target = TARGETS[name](tmp_path)
    for path in sorted((CORPUS / name).iterdir()):
        before = fuzz_targets.refusals.num
        target(path.read_bytes())
        if (expected := SOUND.get(f"{name}/{path.name}")) is not None:
            assert fuzz_targets.refusals.num - before == expected, path.name


def test_an_error_that_is_not_ours_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def damaged(rle: object) -> None:
        raise KeyError("size")

    monkeypatch.setattr("refsam_trt.result.rle.mask_from_rle", damaged)
    with pytest.raises(KeyError):
        TARGETS["rle"](tmp_path)(b"{}")


@pytest.mark.parametrize(
    "shape",
    [["a" * 600, 2**62], [2**64] * 300, [[], 2], [1.5], "x", [-1], None],
    ids=["text", "huge", "list", "float", "no list", "negative", "null"],
)
def test_any_shape_becomes_a_file_to_read(shape: object):
    """NumPy raised MemoryError for the first of them: a finding that was the fuzzer's own fault."""
    data = json.dumps({"metadata": 1, "tensors": {"a": ["F32", shape]}}).encode()
    assert len(fuzz_targets.as_safetensors(data, "key")) >= len(data) // 2
