"""The runtime's token ids are those of `transformers`, for every kind of text encoder."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import shared_data
from checkpoint_files import save_t5
from small_tokenizers import Encode, write_clip, write_roberta, write_t5

from refsam_export.text.encoders import read_text_folder
from refsam_trt.text.tokenizer import Tokenizer

NUM_EXPRESSIONS = 2096
# What the data set lacks; T5's and CLIP's files normalise some of it.
UNUSUAL = (
    "the dog's tail, 3.5 m to the left!",
    "K\u00e4fer auf \u5927\u304d\u306a \u6728",
    "\ufb01sh \uff21 \u00bd na\u00efve e\u0301",
    "don't 'quote' \u201cthis\u201d \u2014 a-b_c #1",
    "a\u3000dog\u00a0\u2028and \U0001f415\u200d\U0001f9ba",
    "!!!",
    "x",
)
KINDS: dict[str, tuple[str, Callable[[Path, Iterable[str]], Encode]]] = {
    "t5": ("T5Tokenizer", write_t5),
    "roberta": ("RobertaTokenizer", write_roberta),
    "clip": ("CLIPTokenizer", write_clip),
}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    path = shared_data.path("ref-youtube-vos-meta", "meta_expressions", "valid")
    videos = json.loads((path / "meta_expressions.json").read_text())["videos"].values()
    found = [entry["exp"] for video in videos for entry in video["expressions"].values()]
    assert len(found) == NUM_EXPRESSIONS
    return found


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(kind)


@pytest.fixture(scope="module")
def twin(kind: str, folder: Path, texts: list[str]) -> Encode:
    return KINDS[kind][1](folder, texts)


@pytest.fixture(scope="module")
def theirs(kind: str, folder: Path, twin: Encode) -> Any:
    """Return what `transformers` makes of the folder."""
    import transformers

    return getattr(transformers, KINDS[kind][0]).from_pretrained(folder, local_files_only=True)


def ours(file: Path) -> Tokenizer:
    return Tokenizer(file, lowercase=True, max_words=512)


def assert_equal(tokenizer: Tokenizer, theirs: Any, texts: Iterable[str]) -> None:
    for text in texts:
        plainly_cleaned = " ".join(text.lower().split())
        assert tokenizer.clean(text) == plainly_cleaned
        expected = theirs(plainly_cleaned).input_ids
        assert tokenizer.encode(plainly_cleaned).tolist() == expected, text


def test_transformers_reads_the_folder_as_its_twin_does(
    theirs: Any, twin: Encode, texts: list[str]
) -> None:
    for text in texts:
        cleaned = " ".join(text.lower().split())
        assert theirs(cleaned).input_ids == twin(cleaned), text


def test_ids_are_those_of_transformers(
    kind: str, theirs: Any, texts: list[str], tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path)
    tokenizer = ours(tmp_path / "tokenizer.json")
    assert_equal(tokenizer, theirs, (*texts, *UNUSUAL))
    bare = theirs("dog", add_special_tokens=False).input_ids
    assert len(tokenizer.encode("dog")) == len(bare) + {"t5": 1, "roberta": 2, "clip": 2}[kind]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> tuple[Path, Any]:
    """Return a T5 folder whose tokenizer is `spiece.model` alone, and transformers' reading."""
    from transformers import T5Tokenizer

    folder = save_t5(tmp_path_factory.mktemp("whole") / "t5")
    (folder / "tokenizer.json").unlink()
    write_t5(folder, texts)
    return folder, T5Tokenizer.from_pretrained(folder, local_files_only=True)


def test_sentencepiece_is_converted_at_export(
    t5: tuple[Path, Any], texts: list[str], tmp_path: Path
) -> None:
    folder, theirs = t5
    file = tmp_path / "tokenizer.json"
    file.write_text(read_text_folder(folder).tokenizer.to_str(), encoding="utf-8")
    assert_equal(ours(file), theirs, (*texts, *UNUSUAL))


def test_files_as_earlier_versions_wrote_them(
    t5: tuple[Path, Any], texts: list[str], tmp_path: Path
) -> None:
    folder, theirs = t5
    raw = json.loads(read_text_folder(folder).tokenizer.to_str())
    for piece in (raw["pre_tokenizer"]["pretokenizers"][1], raw["decoder"]):
        del piece["prepend_scheme"], piece["split"]
        piece["add_prefix_space"] = True
    raw["truncation"] = {
        "direction": "Right",
        "max_length": 512,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    assert_equal(ours(tmp_path / "tokenizer.json"), theirs, (*texts, *UNUSUAL))
