"""Clean-up, tokens, the two caches, and when the text graph is in memory."""

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path

import fake_bundle
import numpy as np
import pytest
from runtime_twin import Twin, assert_same_embedding, random_embedding
from tokenizers import Tokenizer as Library

from refsam_trt import text as text_module
from refsam_trt.backends.base import Graph
from refsam_trt.backends.ort import OrtCpuBackend
from refsam_trt.bundle import open_bundle
from refsam_trt.errors import BundleError, ExpressionError, UsageError
from refsam_trt.families.refsam import DECODER_STEP, TEXT_ENCODER, Split
from refsam_trt.text import (
    TextCache,
    TextEncoder,
    TextMode,
    TextStatistics,
    Tokenizer,
    write_text_cache,
)

SPLITS: tuple[Split, ...] = ("baseline", "optimised")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[Split, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {split: fake_bundle.make_bundle(root / split, split=split) for split in SPLITS}


@pytest.fixture
def tokenizer(bundles: dict[Split, Path]) -> Tokenizer:
    return Tokenizer(bundles["baseline"] / "tokenizer.json", lowercase=True, max_words=8)


@dataclass
class Setting:
    """A text encoder over a bundle that counts how often its graph is loaded."""

    folder: Path
    loads: list[Path] = field(default_factory=list)

    def encoder(
        self, mode: TextMode = "lazy", cache: Path | None = None, has_graph: bool = True
    ) -> TextEncoder:
        bundle = open_bundle(self.folder)
        graphs = next(iter(bundle.manifest.variants.values())).graphs
        backend = OrtCpuBackend(num_threads=1)

        def load() -> Graph:
            entry = graphs[TEXT_ENCODER]
            self.loads.append(bundle.path(entry.file))
            return backend.load(bundle.path(entry.file), entry.spec)

        inputs = graphs[DECODER_STEP].spec.inputs
        needed = ("words", "sentence", "text_values")
        return TextEncoder(
            Tokenizer(bundle.path("tokenizer.json"), lowercase=True, max_words=64),
            backend,
            tuple(t for t in inputs if t.name in needed),
            load_graph=load if has_graph else None,
            cache=TextCache(cache) if cache else None,
            mode=mode,
        )


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("a dog", "a dog"),
        ("  The RED\tdog \n on\u00a0the left ", "the red dog on the left"),
        ("Ägypten ÇA", "ägypten ça"),
    ],
)
def test_clean_up(tokenizer: Tokenizer, given: str, cleaned: str) -> None:
    assert tokenizer.clean(given) == cleaned


def test_case_is_kept_when_the_bundle_says_so(bundles: dict[Split, Path]) -> None:
    tokenizer = Tokenizer(bundles["baseline"] / "tokenizer.json", lowercase=False, max_words=8)
    assert tokenizer.clean(" A  Dog") == "A Dog"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "the expression is empty; say in words what to look for"),
        (" \t\n", "the expression is empty"),
        ("a\x00b", r"expression 'a\\x00b' holds the character U\+0000, which is no text"),
        ("a \x1b[31m dog", r"holds the character U\+001B"),
        ("\ud800 dog", r"holds the character U\+D800"),
        ("dog " * 1025, r"expression 'dog dog .*\.\.\.' has 4100 characters, at most 4096"),
    ],
)
def test_unusable_expressions_are_refused(tokenizer: Tokenizer, given: str, message: str) -> None:
    with pytest.raises(ExpressionError, match=message):
        tokenizer.clean(given)


def test_too_many_tokens_are_refused_never_cut(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("1234567").tolist() == [*(b + 3 for b in b"1234567"), 1]
    with pytest.raises(
        ExpressionError, match=r"'12345678' has 9 tokens with the end token, at most 8"
    ):
        tokenizer.encode("12345678")


def test_padding_and_truncation_in_the_file_are_ignored(
    bundles: dict[Split, Path], tmp_path: Path
) -> None:
    library = Library.from_file(str(bundles["baseline"] / "tokenizer.json"))
    library.enable_truncation(2)
    library.enable_padding(length=32)
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", lowercase=True, max_words=8)
    assert len(tokenizer.encode("abcd")) == 5


def test_text_without_any_token_is_refused(tmp_path: Path, bundles: dict[Split, Path]) -> None:
    raw = json.loads((bundles["baseline"] / "tokenizer.json").read_text())
    raw["normalizer"] = {"type": "Replace", "pattern": {"Regex": "."}, "content": ""}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", lowercase=True, max_words=8)
    with pytest.raises(ExpressionError, match="expression 'abc' has no word in it; reword it"):
        tokenizer.encode("abc")


def test_a_broken_tokenizer_is_a_bundle_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer.json: not a tokenizer \("):
        Tokenizer(tmp_path / "tokenizer.json", lowercase=True, max_words=8)


@pytest.mark.parametrize("split", SPLITS)
def test_embeddings_are_those_of_the_graph(bundles: dict[Split, Path], split: Split) -> None:
    cleaned, found = Setting(bundles[split]).encoder().encode(" A  dog ")
    assert cleaned == "a dog"
    expected = Twin(bundles[split]).embed("a dog")
    for name, array in found.tensors().items():
        np.testing.assert_array_equal(array, expected[name][0])
    assert (found.text_values is None) == (split == "baseline")
    assert found.num_words == 6
    with pytest.raises(ValueError, match="read-only"):
        found.words[0] = 0


def test_each_expression_is_embedded_once(bundles: dict[Split, Path]) -> None:
    setting = Setting(bundles["baseline"])
    encoder = setting.encoder()
    first = encoder.encode("a dog")[1]
    assert encoder.encode("  A DOG")[1] is first
    encoder.encode("a cat")
    assert encoder.statistics == TextStatistics(num_memory_hits=1, num_misses=2)


def test_the_least_recently_used_embedding_is_dropped(
    bundles: dict[Split, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_module, "MEMORY_CACHE_SIZE", 2)
    encoder = Setting(bundles["baseline"]).encoder()
    for text in ("one", "two", "one", "three", "one", "two"):
        encoder.encode(text)
    assert encoder.statistics == TextStatistics(num_memory_hits=2, num_misses=4)


def test_lazy_loads_at_need_and_releases(bundles: dict[Split, Path]) -> None:
    setting = Setting(bundles["baseline"])
    encoder = setting.encoder("lazy")
    assert not encoder.is_loaded
    encoder.encode("a dog")
    encoder.encode("a cat")
    assert (encoder.is_loaded, len(setting.loads)) == (True, 1)
    encoder.release()
    encoder.encode("a dog")
    assert (encoder.is_loaded, len(setting.loads)) == (False, 1)
    encoder.encode("a cow")
    assert len(setting.loads) == 2


def test_release_does_not_wait_for_a_thread_that_embeds(bundles: dict[Split, Path]) -> None:
    encoder = Setting(bundles["baseline"]).encoder("lazy")
    encoder.encode("a dog")
    with encoder._graph_lock:
        encoder.release()
    assert encoder.is_loaded
    encoder.release()
    assert not encoder.is_loaded


def test_resident_loads_at_once_and_keeps(bundles: dict[Split, Path]) -> None:
    setting = Setting(bundles["baseline"])
    encoder = setting.encoder("resident")
    assert encoder.is_loaded
    encoder.release()
    encoder.encode("a dog")
    assert len(setting.loads) == 1
    encoder.close()
    assert not encoder.is_loaded


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    path = tmp_path / "text_cache.safetensors"
    write_text_cache(path, {"a dog": random_embedding(3), "a cat": random_embedding(5, 1)})
    return path


def test_cached_expressions_need_no_graph(bundles: dict[Split, Path], cache: Path) -> None:
    for mode in ("lazy", "cache-only"):
        setting = Setting(bundles["optimised"])
        encoder = setting.encoder(mode, cache)
        assert_same_embedding(encoder.encode("A dog")[1], random_embedding(3))
        assert encoder.encode("A dog")[1] is encoder.encode("a dog")[1]
        assert encoder.statistics == TextStatistics(num_memory_hits=2, num_bundle_hits=1)
        assert not setting.loads


@pytest.mark.parametrize(
    ("mode", "has_graph", "reason"),
    [
        ("cache-only", True, 'text="cache-only" never runs the text encoder'),
        ("lazy", False, "this bundle has no text encoder"),
        ("cache-only", False, "this bundle has no text encoder"),
    ],
)
def test_unknown_expressions_name_the_export_option(
    bundles: dict[Split, Path], cache: Path, mode: TextMode, has_graph: bool, reason: str
) -> None:
    encoder = Setting(bundles["optimised"]).encoder(mode, cache, has_graph)
    message = (
        f"expression 'a cow' is not among the 2 cached in the bundle, and {reason}; "
        "add it with `refsam-export ... --expressions FILE`"
    )
    with pytest.raises(ExpressionError) as caught:
        encoder.encode("a cow")
    assert str(caught.value) == message


def test_resident_without_a_graph_and_unknown_modes_are_refused(
    bundles: dict[Split, Path],
) -> None:
    setting = Setting(bundles["baseline"])
    with pytest.raises(UsageError, match='text="resident" needs the text graph'):
        setting.encoder("resident", has_graph=False)
    with pytest.raises(UsageError, match="text='eager' is not one of lazy, resident, cache-only"):
        setting.encoder("eager")  # type: ignore[arg-type]


def test_a_cache_of_another_split_is_refused(bundles: dict[Split, Path], tmp_path: Path) -> None:
    write_text_cache(tmp_path / "cache", {"a dog": random_embedding(3, values=False)})
    encoder = Setting(bundles["optimised"]).encoder(cache=tmp_path / "cache")
    with pytest.raises(BundleError, match=r"text_values has shape None, the step needs \(4, 4, 64"):
        encoder.encode("a dog")


def test_threads_embed_an_expression_once(bundles: dict[Split, Path]) -> None:
    setting = Setting(bundles["baseline"])
    encoder = setting.encoder()
    together = threading.Barrier(8)
    found = []

    def work() -> None:
        together.wait()
        found.append([encoder.encode(text)[1] for text in ("one", "two", "three")])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(setting.loads) == 1
    assert encoder.statistics == TextStatistics(num_memory_hits=21, num_misses=3)
    assert all(a is b for row in found for a, b in zip(row, found[0], strict=True))
