"""The caches in their order, and when the text graph is in memory."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

import fake_bundle
import numpy as np
import pytest
from runtime_twin import Twin, assert_same_embedding, random_embedding

from refsam_trt.backends.base import Graph
from refsam_trt.backends.ort import OrtCpuBackend
from refsam_trt.bundle.open import open_bundle
from refsam_trt.contract.refsam import DECODER_STEP, TEXT_ENCODER, Split
from refsam_trt.errors import BackendError, BundleError, ExpressionError, UsageError
from refsam_trt.text import encoder as text_module
from refsam_trt.text.cache import TextCache, TextEmbedding, write_text_cache
from refsam_trt.text.disk import TextDiskCache, TextKey
from refsam_trt.text.encoder import TextEncoder, TextMode, TextStatistics
from refsam_trt.text.tokenizer import Tokenizer

SPLITS: tuple[Split, ...] = ("baseline", "optimised")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[Split, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {split: fake_bundle.make_bundle(root / split, split=split) for split in SPLITS}


@dataclass
class Setting:
    """A text encoder over a bundle that counts how often its graph is loaded."""

    folder: Path
    loads: list[Path] = field(default_factory=list)

    def encoder(
        self,
        mode: TextMode = "lazy",
        cache: Path | None = None,
        has_graph: bool = True,
        disk: Path | None = None,
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
        tensors = tuple(t for t in inputs if t.name in needed)
        return TextEncoder(
            Tokenizer(bundle.path("tokenizer.json"), lowercase=True, max_words=64),
            backend,
            tensors,
            load_graph=load if has_graph else None,
            cache=TextCache(cache) if cache else None,
            disk=TextDiskCache(disk, TextKey("t", "g", "b"), tensors) if disk else None,
            mode=mode,
        )


@pytest.mark.parametrize("split", SPLITS)
def test_embeddings_are_those_of_the_graph(bundles: dict[Split, Path], split: Split) -> None:
    cleaned, embedding = Setting(bundles[split]).encoder().encode(" A  dog ")
    assert cleaned == "a dog"
    expected = Twin(bundles[split]).embed("a dog")
    for name, array in embedding.tensors().items():
        np.testing.assert_array_equal(array, expected[name][0])
    assert (embedding.text_values is None) == (split == "baseline")
    assert embedding.num_words == 6
    with pytest.raises(ValueError, match="read-only"):
        embedding.words[0] = 0


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
        "write it on a line of FILE and export the bundle again with "
        "`refsam-export ... --expressions FILE`"
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (np.zeros((0, 256), np.float32), r"words has shape \(0, 256\), the step needs \(1, 256\)"),
        (np.zeros((65, 256), np.float32), r"words has shape \(65, 256\), .* needs \(64, 256\)"),
        (np.zeros(5, np.float32), r"words has shape \(5,\), the step needs \(5, 256\)"),
        (np.zeros((3, 256), np.int8), "words holds int8, expected float32 or float16; export"),
    ],
)
def test_a_cache_that_no_step_can_use_is_refused(
    bundles: dict[Split, Path], tmp_path: Path, words: np.ndarray, message: str
) -> None:
    embedding = TextEmbedding(words, np.zeros(256, np.float32), None)
    write_text_cache(tmp_path / "cache", {"a dog": embedding})
    encoder = Setting(bundles["baseline"]).encoder(cache=tmp_path / "cache")
    with pytest.raises(BundleError, match=f"text embedding of 'a dog': {message}"):
        encoder.encode("a dog")


@pytest.mark.parametrize("split", SPLITS)
def test_the_disk_cache_comes_before_the_graph_and_gives_the_same_bits(
    bundles: dict[Split, Path], tmp_path: Path, split: Split
) -> None:
    setting = Setting(bundles[split])
    computed = setting.encoder(disk=tmp_path).encode("A dog")[1]
    assert len(setting.loads) == 1
    encoder = setting.encoder("cache-only", disk=tmp_path)
    assert_same_embedding(encoder.encode("a  dog")[1], computed)
    assert encoder.encode("a dog")[1] is encoder.encode("A dog")[1]
    assert encoder.statistics == TextStatistics(num_disk_hits=1, num_memory_hits=2)
    assert len(setting.loads) == 1
    with pytest.raises(ExpressionError) as caught:
        encoder.encode("a cow")
    places = f"not among the 0 cached in the bundle, nor in {tmp_path}, and text="
    assert places in str(caught.value)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_bundle_s_cache_comes_before_the_one_on_disk(
    bundles: dict[Split, Path], cache: Path, tmp_path: Path
) -> None:
    encoder = Setting(bundles["optimised"]).encoder(cache=cache, disk=tmp_path / "disk")
    assert_same_embedding(encoder.encode("a dog")[1], random_embedding(3))
    assert encoder.statistics == TextStatistics(num_bundle_hits=1)
    assert not (tmp_path / "disk").exists()


def test_an_embedding_that_overflowed_is_refused_and_not_kept(
    bundles: dict[Split, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowed(*_: object) -> dict[str, np.ndarray]:
        return {"words": np.full((6, 256), np.nan, np.float32), "sentence": np.zeros(256)}

    monkeypatch.setattr(text_module, "run_text_graph", overflowed)
    encoder = Setting(bundles["baseline"]).encoder(disk=tmp_path / "disk")
    with pytest.raises(BackendError, match="'a dog': words has values that are not finite"):
        encoder.encode("a dog")
    assert not (tmp_path / "disk").exists()


def test_threads_embed_an_expression_once(bundles: dict[Split, Path]) -> None:
    setting = Setting(bundles["baseline"])
    encoder = setting.encoder()
    together = threading.Barrier(8)
    embeddings = []

    def work() -> None:
        together.wait()
        embeddings.append([encoder.encode(text)[1] for text in ("one", "two", "three")])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(setting.loads) == 1
    assert encoder.statistics == TextStatistics(num_memory_hits=21, num_misses=3)
    assert all(a is b for row in embeddings for a, b in zip(row, embeddings[0], strict=True))
