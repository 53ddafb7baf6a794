"""A safetensors file that is written tensor by tensor and read tensor by tensor, in numpy alone.

No more of it is in memory than what is written or read at that moment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
from safetensors import safe_open

from refsam_trt.errors import InternalError, OutputError

_NAMES = {"float32": "F32", "float16": "F16", "int64": "I64", "bool": "BOOL", "uint8": "U8"}
_ALIGNMENT = 8


class TensorWriter:
    """Writes a file whose tensors are all declared first; a context manager.

    Leaving its block without an error proves that every row of every tensor was written. What an
    error leaves is not whole, and nothing in the file says so: whoever writes it removes it.

    Args:
        path: of the file.
        shapes: dtype and shape of each tensor.
        metadata: strings of the file's header.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[str, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._path, self._shapes = path, dict(shapes)
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        self._places: dict[str, int] = {}
        end = 0
        for name, (dtype, shape) in self._shapes.items():
            start, end = end, end + _num_bytes(dtype, shape)
            self._places[name] = start
            header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        self._start, self._missing_bytes = 8 + len(text), end
        try:
            self._file = path.open("wb")
            self._file.write(len(text).to_bytes(8, "little") + text)
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._missing_bytes:
                raise InternalError(f"{self._path}: {self._missing_bytes} bytes were never written")
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError as failure:
            raise self._failed(failure) from failure
        finally:
            try:
                self._file.close()
            except OSError as failure:
                if kind is None:
                    raise self._failed(failure) from failure

    def write(self, name: str, array: np.ndarray, row: int | None = None) -> None:
        """Write a tensor, or one row of it along its first axis; each once.

        Raises:
            OutputError: no space left.
            InternalError: another shape or type than was declared.
        """
        dtype, shape = self._shapes[name]
        place = self._start + self._places[name]
        if row is not None:
            shape = shape[1:]
            place += row * _num_bytes(dtype, shape)
        if array.shape != shape or array.dtype != dtype:
            raise InternalError(
                f"{self._path}: {name} is {array.dtype} {array.shape}, declared {dtype} {shape}"
            )
        try:
            self._file.seek(place)
            self._file.write(np.ascontiguousarray(array).tobytes())
        except OSError as error:
            raise self._failed(error) from error
        self._missing_bytes -= array.nbytes

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(f"{self._path}: cannot be written ({error.strerror}); free some space")


class StoredTensors(Mapping[str, np.ndarray]):
    """Tensors of a safetensors file, each read when it is asked for and not kept."""

    def __init__(self, path: Path) -> None:
        self._file = cast(Any, safe_open(path, "numpy"))  # it has no types
        self._names: frozenset[str] = frozenset(self._file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)  # type: ignore[no-any-return]

    def row(self, name: str, index: int) -> np.ndarray:
        """Return one row of a tensor along its first axis, and read no other."""
        return self._file.get_slice(name)[index]  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)


def _num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
