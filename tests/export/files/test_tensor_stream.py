"""Tensor files that are written and read piece by piece are the files that safetensors knows."""

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import load_file

from refsam_export.files.tensor_stream import StoredTensors, TensorWriter
from refsam_trt.errors import InternalError, OutputError

ARRAYS = {
    "rows": np.arange(24, dtype=np.float32).reshape(3, 2, 4),
    "flags": np.array([True, False, True]),
    "ids": np.arange(4, dtype=np.int64).reshape(2, 2),
    "frame": np.arange(6, dtype=np.uint8).reshape(1, 2, 3),
}
SHAPES = {name: (str(array.dtype), array.shape) for name, array in ARRAYS.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    with TensorWriter(path, SHAPES, {"key": "value"}) as file:
        for row in (2, 0, 1):
            file.write("rows", ARRAYS["rows"][row], row)
        for name in ("ids", "frame", "flags"):
            file.write(name, ARRAYS[name])
    return path


def test_safetensors_reads_it(path: Path) -> None:
    values = load_file(path)
    assert values.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert_array_equal(values[name], array)


def test_tensors_are_read_one_by_one(path: Path) -> None:
    stored = StoredTensors(path)
    assert list(stored) == sorted(ARRAYS)
    for name, array in ARRAYS.items():
        assert_array_equal(stored[name], array)
    assert_array_equal(stored.row("rows", 1), ARRAYS["rows"][1])
    with pytest.raises(KeyError):
        stored["other"]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda file: None,
        lambda file: file.write("ids", ARRAYS["ids"].astype(np.int32)),
        lambda file: file.write("ids", ARRAYS["ids"][0]),
        lambda file: file.write("rows", ARRAYS["rows"], 0),
    ],
    ids=["nothing written", "another type", "another shape", "all rows for one"],
)
def test_what_was_not_declared_is_refused(
    wrong: Callable[[TensorWriter], None], tmp_path: Path
) -> None:
    with (
        pytest.raises(InternalError, match=r"never written|declared"),
        TensorWriter(tmp_path / "a", SHAPES) as file,
    ):
        wrong(file)


def test_a_full_disk(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with (
            pytest.raises(OutputError, match="a: cannot be written"),
            TensorWriter(tmp_path / "a", {"x": ("float32", (1000,))}) as file,
        ):
            file.write("x", np.zeros(1000, np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
