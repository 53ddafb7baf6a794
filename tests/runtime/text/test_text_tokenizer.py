"""Clean-up and tokens: what comes out, and what is refused."""

import json
from pathlib import Path

import fake_bundle
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, processors

from refsam_trt.errors import BundleError, ExpressionError
from refsam_trt.text.tokenizer import Tokenizer


@pytest.fixture
def file(tmp_path: Path) -> Path:
    fake_bundle.write_tokenizer(tmp_path / "tokenizer.json")
    return tmp_path / "tokenizer.json"


@pytest.fixture
def tokenizer(file: Path) -> Tokenizer:
    return Tokenizer(file, lowercase=True, max_words=8)


@pytest.mark.parametrize(
    ("expression", "cleaned"),
    [
        ("a dog", "a dog"),
        ("  The RED\tdog \n on\u00a0the left ", "the red dog on the left"),
        ("Ägypten ÇA", "ägypten ça"),
    ],
)
def test_clean_up(tokenizer: Tokenizer, expression: str, cleaned: str) -> None:
    assert tokenizer.clean(expression) == cleaned


def test_the_content_of_a_file_is_as_good_as_the_file(file: Path, tokenizer: Tokenizer) -> None:
    same = Tokenizer(file.read_text(encoding="utf-8"), lowercase=True, max_words=8)
    assert same.encode("a dog").tolist() == tokenizer.encode("a dog").tolist()


def test_case_is_kept_when_the_bundle_says_so(file: Path) -> None:
    tokenizer = Tokenizer(file, lowercase=False, max_words=8)
    assert tokenizer.clean(" A  Dog") == "A Dog"


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "the expression is empty; say in words what to look for"),
        (" \t\n", "the expression is empty"),
        ("a\x00b", r"expression 'a\\x00b' holds the character U\+0000, which is no text"),
        ("a \x1b[31m dog", r"holds the character U\+001B"),
        ("\ud800 dog", r"holds the character U\+D800"),
        ("dog " * 1025, r"expression 'dog dog .*\.\.\.' has 4100 characters, at most 4096"),
    ],
)
def test_unusable_expressions_are_refused(
    tokenizer: Tokenizer, expression: str, message: str
) -> None:
    with pytest.raises(ExpressionError, match=message):
        tokenizer.clean(expression)


def test_too_many_tokens_are_refused_never_cut(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("1234567").tolist() == [*(b + 3 for b in b"1234567"), 1]
    with pytest.raises(
        ExpressionError, match=r"'12345678' has 9 tokens, begin and end tokens included, at most 8"
    ):
        tokenizer.encode("12345678")


def test_padding_and_truncation_in_the_file_are_ignored(file: Path) -> None:
    library = Library.from_file(str(file))
    library.enable_truncation(2)
    library.enable_padding(length=32)
    library.save(str(file))
    assert len(Tokenizer(file, lowercase=True, max_words=8).encode("abcd")) == 5


def test_begin_and_end_tokens_count(file: Path) -> None:
    library = Library.from_file(str(file))
    library.post_processor = processors.TemplateProcessing(
        single="<unk> $A </s>", special_tokens=[("<unk>", 2), ("</s>", 1)]
    )
    library.save(str(file))
    tokenizer = Tokenizer(file, lowercase=True, max_words=4)
    assert tokenizer.encode("ab").tolist() == [2, ord("a") + 3, ord("b") + 3, 1]
    with pytest.raises(ExpressionError, match="'abc' has 5 tokens, begin and end tokens included"):
        tokenizer.encode("abc")


def test_text_without_any_token_is_refused(file: Path) -> None:
    raw = json.loads(file.read_text())
    raw["normalizer"] = {"type": "Replace", "pattern": {"Regex": "."}, "content": ""}
    file.write_text(json.dumps(raw))
    tokenizer = Tokenizer(file, lowercase=True, max_words=8)
    with pytest.raises(ExpressionError, match="expression 'abc' has no word in it; reword it"):
        tokenizer.encode("abc")


def test_characters_that_the_file_has_no_token_for_are_refused(file: Path) -> None:
    Library(models.Unigram([("a", -1.0)], unk_id=None)).save(str(file))
    tokenizer = Tokenizer(file, lowercase=True, max_words=8)
    assert tokenizer.encode("aa").tolist() == [0, 0]
    with pytest.raises(ExpressionError, match=r"'ab' cannot be cut into tokens \(.*reword it"):
        tokenizer.encode("ab")


def test_a_broken_tokenizer_is_a_bundle_error(file: Path) -> None:
    file.write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer.json: not a tokenizer \("):
        Tokenizer(file, lowercase=True, max_words=8)
