"""What a backend offers: buffers, graphs that write into them, and counted transfers.

Only protocols and what every backend shares. A session sees nothing else, so tensors that pass from
graph to graph, and the track tokens, cannot reach the host unnoticed.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from refsam_trt.contract.specs import DType, GraphSpec, TensorSpec
from refsam_trt.errors import BackendError, InternalError

_NUMPY_DTYPES: dict[DType, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "int64": np.dtype(np.int64),
    "bool": np.dtype(np.bool_),
}
"""Without bfloat16, which numpy does not have."""


class Buffer(Protocol):
    """Memory of one backend: dense, row-major, opaque to everybody but its backend.

    Whoever called `Backend.empty` or `Backend.upload` owns it; the memory is given back when the
    last reference to the buffer and to its views is gone.
    """

    @property
    def device(self) -> str:
        """Device the memory lies on, as the backend writes it (`"cpu"`)."""

    @property
    def dtype(self) -> DType:
        """Element type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, outermost first."""

    def rows(self, start: int, stop: int) -> Buffer:
        """Return a view of `[start:stop]` on the leading axis; nothing is copied."""


class Context(Protocol):
    """What one session needs of its own to run a graph; used by one thread at a time."""

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run the graph, reading `inputs` and writing into `outputs`.

        Nothing that crosses is allocated, copied or moved to the host. May return before the device
        is done: later calls of the same thread are ordered behind it.

        Args:
            inputs: exactly the graph's inputs, shapes agreeing on every symbol.
            outputs: exactly the graph's outputs; they share no memory with the inputs.

        Raises:
            BackendError: the device failed.
        """


class Event(Protocol):
    """A point in the work of a stream, which lies behind everything that was begun before it."""


class Stream(Protocol):
    """A queue of device work; whatever any thread begins inside it takes effect in order.

    A context manager that is entered again and again, by one thread at a time. Outside of all
    streams, the calls of one thread take effect in order.
    """

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> None: ...

    def record(self) -> Event:
        """Return the point that the stream's work has come to."""

    def wait(self, event: Event) -> None:
        """Let all that follows on this stream begin only after an event of another one.

        The host does not wait.
        """


class Download(Protocol):
    """A copy on its way to the host."""

    def result(self) -> np.ndarray:
        """Return the copy, which is the caller's, once it has arrived."""


class Graph(Protocol):
    """A loaded graph; may be shared by threads, each with a context of its own."""

    @property
    def spec(self) -> GraphSpec:
        """Its tensors, as the manifest declares them."""

    def context(self) -> Context:
        """Return a new execution context."""


class Backend(Protocol):
    """A device with its runtime library. May be shared by threads.

    Every call works on the stream that the thread has entered; transfers that return are done for
    all streams, graphs that were run only for their own (see `Stream.wait`).
    """

    @property
    def name(self) -> str:
        """Name to ask for in `load(backend=...)`."""

    @property
    def precision_notes(self) -> str:
        """One sentence: which precisions run here, and how exactly."""

    @property
    def transfers(self) -> Transfers:
        """Counters of everything that crossed since the backend was opened."""

    def load(self, path: Path, spec: GraphSpec) -> Graph:
        """Load a graph file whose tensors are `spec`.

        Raises:
            BackendError: unreadable, other tensors than `spec`, or a dtype unknown here.
        """

    def new_stream(self) -> Stream:
        """Return a stream of the caller's."""

    def empty(self, shape: Sequence[int], dtype: DType) -> Buffer:
        """Return a new buffer with undefined content."""

    def upload(self, array: np.ndarray, out: Buffer | None = None) -> Buffer:
        """Copy a host array to the device, into `out` (same shape and dtype) or a new buffer.

        The array may be changed as soon as the call returns.
        """

    def begin_download(self, buffer: Buffer) -> Download:
        """Begin to copy to the host, behind the work of this stream, without waiting for it.

        The buffer must stay as it is until the copy has arrived.
        """

    def download(self, buffer: Buffer) -> np.ndarray:
        """Return a copy on the host, after waiting for the work of this stream."""

    def adopt(self, array: Any) -> Buffer:
        """Return a buffer that is another library's array where it lies; nothing is copied.

        Args:
            array: dense, with `__dlpack__` or `__cuda_array_interface__`. Kept alive with the
                buffer; must not be written to while it is in use.

        Raises:
            VideoError: on another device than the backend's, or not dense.
            BackendError: the backend computes on the CPU.
        """

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Copy device to device; same shape and dtype, no shared memory."""

    def close(self) -> None:
        """Give everything back; buffers and graphs of this backend must not be used afterwards."""


@dataclass(frozen=True)
class TransferCounts:
    """Calls and bytes so far: host to device, device to host, device to device."""

    num_uploads: int = 0
    num_downloads: int = 0
    num_copies: int = 0
    upload_bytes: int = 0
    download_bytes: int = 0
    copy_bytes: int = 0

    def __sub__(self, earlier: TransferCounts) -> TransferCounts:
        names = self.__dataclass_fields__
        return TransferCounts(**{n: getattr(self, n) - getattr(earlier, n) for n in names})


class Transfers:
    """Counts transfers; may be shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = [0] * 6

    def uploaded(self, num_bytes: int) -> None:
        """Count one upload."""
        self._add(0, num_bytes)

    def downloaded(self, num_bytes: int) -> None:
        """Count one download."""
        self._add(1, num_bytes)

    def copied(self, num_bytes: int) -> None:
        """Count one copy from device to device."""
        self._add(2, num_bytes)

    def counts(self) -> TransferCounts:
        """Return the figures so far; subtract two of them to learn what lay between."""
        with self._lock:
            return TransferCounts(*self._totals)

    def _add(self, kind: int, num_bytes: int) -> None:
        with self._lock:
            self._totals[kind] += 1
            self._totals[kind + 3] += num_bytes


def numpy_dtype(dtype: DType, backend: str) -> np.dtype[Any]:
    """Return the numpy type of `dtype`, or refuse by name what numpy does not have."""
    if dtype not in _NUMPY_DTYPES:
        known = ", ".join(_NUMPY_DTYPES)
        raise BackendError(
            f"backend {backend} cannot hold {dtype} tensors (it knows {known}); "
            "choose an fp32 or fp16 variant of the bundle"
        )
    return _NUMPY_DTYPES[dtype]


def dtype_of(array: np.ndarray) -> DType:
    """Return our name of an array's element type."""
    for name, dtype in _NUMPY_DTYPES.items():
        if array.dtype == dtype:
            return name
    raise InternalError(f"no buffer holds {array.dtype} elements")


def check_same(source: Buffer | np.ndarray, target: Buffer, action: str) -> None:
    """Refuse a transfer between different shapes or dtypes."""
    dtype = dtype_of(source) if isinstance(source, np.ndarray) else source.dtype
    if source.shape != target.shape or dtype != target.dtype:
        tensor = f"{dtype} {list(source.shape)}"
        raise InternalError(f"{action} of {tensor} into {target.dtype} {list(target.shape)}")


def check_call(
    spec: GraphSpec, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]
) -> None:
    """Refuse a call whose tensors are not those of `spec`, before any library sees a pointer."""
    sizes: dict[str, int] = {}
    for kind, specs, tensors in (
        ("input", spec.inputs, inputs),
        ("output", spec.outputs, outputs),
    ):
        if tensors.keys() != {tensor.name for tensor in specs}:
            names = [tensor.name for tensor in specs]
            raise InternalError(f"graph called with {kind}s {sorted(tensors)}, expected {names}")
        for tensor in specs:
            _check_tensor(tensor, tensors[tensor.name], sizes)


def _check_tensor(tensor: TensorSpec, buffer: Buffer, sizes: dict[str, int]) -> None:
    if len(buffer.shape) == len(tensor.dims):
        for dim, size in zip(tensor.dims, buffer.shape, strict=True):
            if isinstance(dim, str):
                symbol, _, offset = dim.partition("+")
                sizes.setdefault(symbol, size - int(offset or 0))
        if buffer.dtype == tensor.dtype and buffer.shape == tensor.shape(sizes):
            return
    expected = f"{tensor.dtype} {list(tensor.dims)} with {sizes}"
    raise InternalError(
        f"tensor {tensor.name!r}: expected {expected}, found {buffer.dtype} {list(buffer.shape)}"
    )
