"""Files of tensors: what is read, what is refused in which words, and that no code ever runs."""

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from refsam_export.files.tensor_files import (
    describe,
    read_json_object,
    read_metadata,
    read_tensors,
    write_tensors,
)
from refsam_trt.errors import CheckpointError, OutputError

TENSORS = {"a": torch.arange(600.0).reshape(20, 30), "b.weight": torch.tensor([1, -2])}


class Evil:
    """Opens a file for writing when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.marker), "w"))


def torch_bytes(content: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def old_format(content: object) -> bytes:
    return torch_bytes(content, _use_new_zipfile_serialization=False)


def assert_same(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == TENSORS.keys()
    for key, value in TENSORS.items():
        assert torch.equal(found[key], value)
        assert found[key].dtype == value.dtype


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("write", [torch_bytes, old_format])
def test_pytorch_files(suffix: str, write: Callable[[object], bytes], tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(write(TENSORS))
    assert_same(read_tensors(path))


def test_a_training_checkpoint_gives_its_model(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(torch_bytes({"model": TENSORS, "epoch": 3}))
    assert_same(read_tensors(path))


def test_safetensors_with_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(TENSORS, path, {"key": "value"})
    assert_same(read_tensors(path))
    assert read_metadata(path) == {"key": "value"}


def test_files_without_metadata_have_none(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "weights.safetensors")
    (tmp_path / "weights.pth").write_bytes(torch_bytes(TENSORS))
    assert read_metadata(tmp_path / "weights.safetensors") == {}
    assert read_metadata(tmp_path / "weights.pth") == {}


@pytest.mark.parametrize("read", [read_tensors, read_metadata])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "."])
def test_a_missing_file(read: Callable[[Path], object], name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r": no such file"):
        read(tmp_path / name)


def test_an_unknown_kind_of_file_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "weights.ckpt").write_bytes(torch_bytes(TENSORS))
    with pytest.raises(CheckpointError) as error:
        read_tensors(tmp_path / "weights.ckpt")
    assert "unknown kind of weights file '.ckpt'" in str(error.value)
    assert "expected .safetensors or one of .bin, .pt, .pth" in str(error.value)


@pytest.mark.parametrize("write", [torch_bytes, old_format])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_pytorch_file(
    write: Callable[[object], bytes], kept: float, tmp_path: Path
) -> None:
    whole = write(TENSORS)
    path = tmp_path / "weights.pth"
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(CheckpointError, match=r"weights\.pth: truncated, or not a dictionary"):
        read_tensors(path)


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html><body>Not Found</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        bytes(5000),
        bytes(range(256)) * 20,
        pickle.dumps({"a": [1, 2, 3]}, protocol=0)[:-4],
    ],
    ids=["web page", "git-lfs pointer", "zeros", "noise", "cut pickle"],
)
def test_what_is_no_pytorch_file_at_all(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_tensors(path)
    assert "not a dictionary of tensors written by torch.save" in str(error.value)
    # PyTorch's advice to switch the protection off must not reach the user.
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("kept", [0, 4, 60, -10])
@pytest.mark.parametrize("read", [read_tensors, read_metadata])
def test_a_truncated_safetensors_file(
    read: Callable[[Path], object], kept: int, tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save(TENSORS)[:kept])
    with pytest.raises(CheckpointError, match=r"truncated or not a safetensors file \(.+\); fetch"):
        read(path)


@pytest.mark.parametrize(
    "write",
    [torch_bytes, old_format, lambda content: pickle.dumps(content, protocol=2)],
    ids=["zip", "old", "pickle"],
)
def test_a_pickle_that_wants_to_run_code(write: Callable[[object], bytes], tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "weights.pth"
    path.write_bytes(write({"a": TENSORS["a"], "b": Evil(marker)}))
    with pytest.raises(CheckpointError, match=r"refused, .* loading it would run code; save it"):
        read_tensors(path)
    assert not marker.exists()


@pytest.mark.parametrize("write", [torch_bytes, old_format])
@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")
def test_that_pickle_does_run_without_the_protection(
    write: Callable[[object], bytes], tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    torch.load(io.BytesIO(write({"b": Evil(marker)})), weights_only=False)
    assert marker.exists()


def test_a_whole_module_is_refused_as_code(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(torch_bytes(torch.nn.Linear(2, 2)))
    with pytest.raises(CheckpointError) as error:
        read_tensors(path)
    assert "the file holds more than tensors and loading it would run code" in str(error.value)
    assert "save it again as a state dictionary or convert it to .safetensors" in str(error.value)


@pytest.mark.parametrize(
    ("content", "kind"),
    [([TENSORS["a"]], "list"), ({"a": 1.0}, "dict"), ({1: TENSORS["a"]}, "dict")],
)
def test_other_content_is_refused_with_what_to_save(
    content: object, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(torch_bytes(content))
    with pytest.raises(
        CheckpointError, match=rf"expected a dictionary of tensors, found {kind} .*"
    ):
        read_tensors(path)


def test_written_files_are_read_back_and_open_to_others(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    before = os.umask(0o022)
    try:
        write_tensors(path, {**TENSORS, "turned": TENSORS["a"].T}, {"key": "value"})
    finally:
        os.umask(before)
    tensors = read_tensors(path)
    assert torch.equal(tensors.pop("turned"), TENSORS["a"].T)
    assert_same(tensors)
    assert read_metadata(path) == {"key": "value"}
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_disk_that_fills_while_writing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"a\.safetensors: cannot be written .*; free some"):
            write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "not a readable JSON file: Expecting"),
        ("[1]", "found JSON of a list, expected an object"),
        ("[" * 100_000, "not a readable JSON file: maximum recursion"),
        (b"\xff\xfe", "not a readable JSON file: 'utf-8' codec"),
    ],
    ids=["cut", "list", "deep", "not utf-8"],
)
def test_json_that_cannot_be_used(content: str | bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError) as error:
        read_json_object(path)
    assert f"{path}: {text}" in str(error.value)


def test_json_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: not a readable JSON file: .*No such"):
        read_json_object(tmp_path / "config.json")


def test_json_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"a": [1]}))
    assert read_json_object(tmp_path / "a.json") == {"a": [1]}


def test_a_source_is_described_without_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"abc")
    source = describe("checkpoint", path)
    assert (source.role, source.name, source.size_bytes) == ("checkpoint", "weights.bin", 3)
    assert source.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
