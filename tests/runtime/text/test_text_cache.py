"""The text cache of a bundle comes back as written, or is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from runtime_twin import assert_same_embedding, random_embedding
from safetensors.numpy import save_file

from refsam_trt.errors import BundleError
from refsam_trt.text.cache import TextCache, write_text_cache


def test_a_text_cache_comes_back_as_written(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    write_text_cache(cache, {"a dog": random_embedding(3), "a cat": random_embedding(5, 1)})
    opened = TextCache(cache)
    assert opened.expressions == ("a dog", "a cat")
    dog, cat = opened.get("a dog"), opened.get("a cat")
    assert dog is not None
    assert cat is not None
    assert_same_embedding(dog, random_embedding(3))
    assert_same_embedding(cat, random_embedding(5, 1))
    assert opened.get("a cow") is None
    bare = random_embedding(2, values=False)
    write_text_cache(tmp_path / "bare", {"x": bare})
    assert_same_embedding(TextCache(tmp_path / "bare").get("x") or random_embedding(1), bare)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bare", "cache"]


def _metadata(schema: int, *expressions: str) -> dict[str, str]:
    raw = json.dumps({"schema": schema, "expressions": expressions})
    return {"refsam_text_cache": raw}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"short"), r"not a text cache \(SafetensorError"),
        (lambda path: save_file({}, path), r"not a text cache \(KeyError"),
        (
            lambda path: save_file({}, path, {"refsam_text_cache": '{"schema": 1, "x": 2}'}),
            r"not a text cache \(ValidationError",
        ),
        (lambda path: save_file({}, path, _metadata(2)), "schema 2, this version reads 1"),
        (lambda path: save_file({}, path, _metadata(1, "a", "a")), "an expression is listed twice"),
    ],
)
def test_a_damaged_cache_is_refused(
    tmp_path: Path, write: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "cache"
    write(path)
    with pytest.raises(BundleError, match=f"{path}: {message}"):
        TextCache(path)


def test_a_cache_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "cache", _metadata(1, "a dog"))
    with pytest.raises(BundleError, match=r"tensor '0.words' cannot be read"):
        TextCache(tmp_path / "cache").get("a dog")
