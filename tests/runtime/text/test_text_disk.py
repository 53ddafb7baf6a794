"""Embeddings in a folder that processes share: found again, checked, bounded, never in the way."""

import logging
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from runtime_twin import assert_same_embedding, random_embedding
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from shared_text_cache import KEY, TENSORS, TEXTS, put_and_get, work_in_a_process

from refsam_trt.contract.refsam import TEXT_ENCODER, contract
from refsam_trt.errors import UsageError
from refsam_trt.text.disk import METADATA_KEY, TextDiskCache, TextKey, text_cache_folder

FILE_BYTES = 67_000  # about, for 4 tokens


@pytest.fixture
def cache(tmp_path: Path) -> TextDiskCache:
    return TextDiskCache(tmp_path / "cache", KEY, TENSORS)


def only_file(cache: TextDiskCache) -> Path:
    (path,) = cache.folder.iterdir()
    return path


def test_what_was_put_is_found_bit_by_bit_by_another_process_s_cache(cache: TextDiskCache) -> None:
    assert cache.get("a dog", num_words=3) is None
    cache.put("a dog", random_embedding(3))
    cache.put('ein Hund \u00e4\u2028\U0001f415"\\', random_embedding(5, 1))
    other = TextDiskCache(cache.folder, KEY, TENSORS)
    for text, num_words, seed in (("a dog", 3, 0), ('ein Hund \u00e4\u2028\U0001f415"\\', 5, 1)):
        embedding = other.get(text, num_words=num_words)
        assert embedding is not None
        assert_same_embedding(embedding, random_embedding(num_words, seed))
        assert not embedding.words.flags.writeable
    assert other.get("a cat", num_words=3) is None


def test_half_precision_and_the_baseline_split_are_kept_as_they_are(tmp_path: Path) -> None:
    tensors = contract(32, 2, "baseline", "float16")[TEXT_ENCODER].outputs
    cache = TextDiskCache(tmp_path, KEY, tensors)
    whole = random_embedding(4, values=False)
    half = type(whole)(whole.words.astype(np.float16), whole.sentence.astype(np.float16), None)
    cache.put("a dog", half)
    embedding = cache.get("a dog", num_words=4)
    assert embedding is not None
    assert embedding.words.dtype == np.float16
    assert_same_embedding(embedding, half)
    assert TextDiskCache(tmp_path, KEY, TENSORS).get("a dog", num_words=4) is None


@pytest.mark.parametrize("name", TextKey.__struct_fields__)
def test_another_tokenizer_graph_or_backend_finds_nothing(cache: TextDiskCache, name: str) -> None:
    cache.put("a dog", random_embedding(3))
    values = {field: getattr(KEY, field) for field in TextKey.__struct_fields__} | {name: "c"}
    assert TextDiskCache(cache.folder, TextKey(**values), TENSORS).get("a dog", num_words=3) is None


def test_the_folder_is_the_user_s_alone_and_holds_nothing_but_the_file(
    cache: TextDiskCache,
) -> None:
    cache.put("a dog", random_embedding(3))
    assert only_file(cache).name.startswith("text-")
    if os.name == "posix":
        assert cache.folder.stat().st_mode & 0o777 == 0o700


def rewrite(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change the tensors, and leave the file's word about them as it is."""
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    tensors = {name: array.copy() for name, array in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata)


def poisoned(path: Path, value: float) -> None:
    """Write a file that is sound but for its values."""
    bad = random_embedding(3)
    words = bad.words.copy()
    words[1, 2] = value
    other = TextDiskCache(path.parent, KEY, TENSORS)
    other.put("a dog", type(bad)(words, bad.sentence, bad.text_values))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "header"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "(?i)incomplete|invalid"),
    "not safetensors": (lambda path: path.write_bytes(b"\xff" * 4096), "(?i)header"),
    "too large": (
        lambda path: path.write_bytes(path.read_bytes() + bytes(2**18)),
        "larger than any embedding of this expression",
    ),
    "of another expression": (
        lambda path: path.write_bytes(path.with_name("other").read_bytes()),
        "of another expression",
    ),
    "a changed bit": (
        lambda path: rewrite(path, lambda t: t["sentence"].view(np.uint8).__setitem__(5, 1)),
        "damaged, or",
    ),
    "no metadata": (lambda path: save_file(load_file(path), path), "KeyError|__metadata__"),
    "metadata that is no record": (
        lambda path: save_file(load_file(path), path, {METADATA_KEY: "[1]"}),
        "Expected `object`",
    ),
    "another dtype": (
        lambda path: rewrite(path, lambda t: t.update(words=t["words"].astype(np.float64))),
        r"holds .*float64.*, expected ",
    ),
    "another shape": (
        lambda path: rewrite(path, lambda t: t.update(words=t["words"][:2].copy())),
        r"holds .*\(2, 256\).*, expected .*\(3, 256\)",
    ),
    "a tensor less": (lambda path: rewrite(path, lambda t: t.pop("text_values")), "holds .*words"),
    "a tensor more": (
        lambda path: rewrite(path, lambda t: t.update(x=np.zeros(1, np.float32))),
        r"holds .*'x': \(\(1,\)",
    ),
    "NaN": (lambda path: poisoned(path, np.nan), "values that are not finite"),
    "infinity": (lambda path: poisoned(path, -np.inf), "values that are not finite"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_not_used_said_once_and_replaced(
    cache: TextDiskCache, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    cache.put("other", random_embedding(3, 1))
    only_file(cache).rename(cache.folder / "other")
    cache.put("a dog", random_embedding(3))
    spoil, message = DAMAGES[damage]
    (path,) = cache.folder.glob("text-*")
    spoil(path)
    for _ in range(2):
        assert cache.get("a dog", num_words=3) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"{path}: not used as text embedding (")
    assert re.search(message, record.getMessage())
    cache.put("a dog", random_embedding(3))
    assert cache.get("a dog", num_words=3) is not None


def test_another_number_of_tokens_is_damage_too(
    cache: TextDiskCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put("a dog", random_embedding(3))
    assert cache.get("a dog", num_words=4) is None
    assert "expected {'words': ((4, 256)" in caplog.text


def test_no_damage_whatever_raises_or_gives_other_values(cache: TextDiskCache) -> None:
    cache.put("a dog", random_embedding(3))
    path = only_file(cache)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    num_found = 0
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(0, rng.choice([9, 700, len(whole)]), rng.integers(1, 4)):
            content[place] = rng.integers(256)
        path.write_bytes(content[: rng.integers(len(whole))] if rng.random() < 0.1 else content)
        embedding = cache.get("a dog", num_words=3)
        if embedding is not None:  # nothing that counts was changed
            num_found += 1
            assert_same_embedding(embedding, random_embedding(3))
    assert num_found < 30


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_a_pipe_or_folder_in_place_of_a_file_is_left_alone(cache: TextDiskCache) -> None:
    cache.put("a dog", random_embedding(3))
    path = only_file(cache)
    path.unlink()
    os.mkfifo(path)
    assert cache.get("a dog", num_words=3) is None  # opening a pipe would wait for ever
    path.unlink()
    path.mkdir()
    assert cache.get("a dog", num_words=3) is None


def names_by_age(folder: Path) -> list[str]:
    return sorted((p.name for p in folder.iterdir()), key=lambda n: (folder / n).stat().st_mtime_ns)


def test_the_oldest_go_when_there_is_no_room(tmp_path: Path) -> None:
    cache = TextDiskCache(tmp_path, KEY, TENSORS, max_bytes=3 * FILE_BYTES)
    mine = tmp_path / "text-of-mine.safetensors"
    mine.write_bytes(b"somebody else's" * FILE_BYTES)
    os.utime(mine, (0, 0))
    for age_s, text in enumerate(("one", "two", "three")):
        cache.put(text, random_embedding(4))
        newest = tmp_path / names_by_age(tmp_path)[-1]
        os.utime(newest, (1000 + age_s, 1000 + age_s))
    cache.put("four", random_embedding(4))
    assert mine.exists()
    is_kept = [cache.get(text, num_words=4) is not None for text in ("one", "two", "three", "four")]
    assert is_kept == [False, True, True, True]


def test_what_killed_processes_left_goes_too(tmp_path: Path) -> None:
    cache = TextDiskCache(tmp_path, KEY, TENSORS)
    being_written, left_behind = (
        tmp_path / f".text-{'0' * 27}.{digit * 12}.part" for digit in ("0", "1")
    )
    for path, age_s in ((being_written, 60), (left_behind, 2 * 3600)):
        path.write_bytes(b"half an embedding")
        os.utime(path, (time.time() - age_s,) * 2)
    cache.put("one", random_embedding(4))
    assert being_written.exists()
    assert not left_behind.exists()


def test_a_file_larger_than_the_bound_is_not_kept(tmp_path: Path) -> None:
    cache = TextDiskCache(tmp_path, KEY, TENSORS, max_bytes=FILE_BYTES // 2)
    cache.put("one", random_embedding(4))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "")])
def test_a_folder_that_cannot_be_written_is_said_once(
    cache: TextDiskCache,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: OSError,
) -> None:
    def refuse(path: Path, content: bytes) -> int:
        error.filename = str(path)
        raise error

    cache.put("a cat", random_embedding(3))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", refuse)
        cache.put("a dog", random_embedding(3))
    cache.put("a cow", random_embedding(3))
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{cache.folder}: text embeddings are not kept here (")
    assert cache.get("a cat", num_words=3) is not None
    assert cache.get("a cow", num_words=3) is None
    assert len(list(cache.folder.iterdir())) == 1


def test_a_file_in_the_way_of_the_folder_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("not a folder")
    cache = TextDiskCache(tmp_path / "cache" / "text", KEY, TENSORS)
    assert cache.get("a dog", num_words=3) is None
    cache.put("a dog", random_embedding(3))
    assert "text embeddings are not kept here (" in caplog.text


def test_threads_may_share_a_cache_that_is_always_too_small(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = TextDiskCache(tmp_path, KEY, TENSORS, max_bytes=2 * FILE_BYTES)
    threads = [threading.Thread(target=put_and_get, args=(cache, seed)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not caplog.records
    assert 1 <= len(list(tmp_path.iterdir())) <= 2


def test_two_processes_may_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=work_in_a_process, args=(tmp_path, seed)) for seed in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(tmp_path.iterdir())) == len(TEXTS)


def test_the_choices_of_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert text_cache_folder("off") is None
    assert text_cache_folder("user") == tmp_path / "refsam-trt" / "text"
    assert text_cache_folder(tmp_path / "new") == tmp_path / "new"
    assert text_cache_folder(Path("relative")) == Path.cwd() / "relative"
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file is no folder; name another place"):
        text_cache_folder(tmp_path / "file")
    for wrong in ("users", str(tmp_path), None, True):
        with pytest.raises(UsageError, match=r'expected "off", "user", or a folder as pathlib'):
            text_cache_folder(wrong)  # type: ignore[arg-type]
