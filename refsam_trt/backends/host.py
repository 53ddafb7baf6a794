"""Buffers in host memory: what every backend that computes on the CPU shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refsam_trt.backends.base import (
    Buffer,
    Download,
    Event,
    Stream,
    Transfers,
    check_same,
    dtype_of,
    numpy_dtype,
)
from refsam_trt.contract.specs import DType
from refsam_trt.errors import BackendError, InternalError


class HostBuffer:
    """A C-contiguous host array that graphs read and write in place."""

    device = "cpu"

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.dtype: DType = dtype_of(array)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, outermost first."""
        return self.array.shape

    def rows(self, start: int, stop: int) -> HostBuffer:
        """Return a view of `[start:stop]` on the leading axis."""
        if not 0 <= start < stop <= self.array.shape[0]:
            raise InternalError(f"rows [{start}:{stop}] of a buffer with {self.array.shape[0]}")
        return HostBuffer(self.array[start:stop])


class HostStream:
    """A stream of a backend whose calls are done when they return."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None

    def record(self) -> Event:
        """Return a point that was reached."""
        return self

    def wait(self, event: Event) -> None:
        """Wait for nothing."""


@dataclass(frozen=True)
class Arrived:
    """A download that is done."""

    array: np.ndarray

    def result(self) -> np.ndarray:
        """Return the copy."""
        return self.array


class HostMemory:
    """The memory half of a backend; a subclass has `name`, `precision_notes` and `load`.

    Uploads and downloads are copies from one host array to another.
    """

    name: str

    def __init__(self) -> None:
        self.transfers = Transfers()

    def new_stream(self) -> Stream:
        """Return a stream that orders nothing: every call is done when it returns."""
        return HostStream()

    def empty(self, shape: Sequence[int], dtype: DType) -> Buffer:
        """Return a new buffer with undefined content."""
        return HostBuffer(np.empty(shape, numpy_dtype(dtype, self.name)))

    def upload(self, array: np.ndarray, out: Buffer | None = None) -> Buffer:
        """Copy a host array into `out` or a new buffer."""
        target = self.empty(array.shape, dtype_of(array)) if out is None else out
        check_same(array, target, "upload")
        np.copyto(self._array_of(target), array)
        self.transfers.uploaded(array.nbytes)
        return target

    def begin_download(self, buffer: Buffer) -> Download:
        """Return a copy that has arrived."""
        return Arrived(self.download(buffer))

    def download(self, buffer: Buffer) -> np.ndarray:
        """Return a copy on the host."""
        array = self._array_of(buffer).copy()
        self.transfers.downloaded(array.nbytes)
        return array

    def adopt(self, array: Any) -> Buffer:
        """Refuse: arrays of the host are uploaded."""
        raise BackendError(
            "frame: an array on a GPU, but the backend runs on the CPU; copy the frame to the "
            "host, or load the bundle with a CUDA backend"
        )

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Copy between two buffers of the same shape and dtype."""
        check_same(source, target, "copy")
        array = self._array_of(source)
        np.copyto(self._array_of(target), array)
        self.transfers.copied(array.nbytes)

    def close(self) -> None:
        """Do nothing: memory goes with the last reference."""

    def _array_of(self, buffer: Buffer) -> np.ndarray:
        return array_of(buffer, self.name)


def array_of(buffer: Buffer, backend: str) -> np.ndarray:
    """Return the memory behind a host buffer, or refuse one of another device by name."""
    if not isinstance(buffer, HostBuffer):
        raise InternalError(f"backend {backend} was given a buffer of device {buffer.device}")
    return buffer.array
