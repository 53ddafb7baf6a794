"""ONNX Runtime on the CPU: the embedded default and the referee of every other backend."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refsam_trt.backends.base import (
    Buffer,
    Download,
    Event,
    Graph,
    Stream,
    Transfers,
    check_call,
    check_same,
    dtype_of,
    numpy_dtype,
)
from refsam_trt.contract.specs import DType, GraphSpec
from refsam_trt.errors import BackendError, InternalError, MissingExtraError

NAME = "ort-cpu"

_ORT_TYPES: dict[str, DType] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class OrtBuffer:
    """A C-contiguous host array that graphs read and write in place."""

    device = "cpu"

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.dtype: DType = dtype_of(array)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, outermost first."""
        return self.array.shape

    def rows(self, start: int, stop: int) -> OrtBuffer:
        """Return a view of `[start:stop]` on the leading axis."""
        if not 0 <= start < stop <= self.array.shape[0]:
            raise InternalError(f"rows [{start}:{stop}] of a buffer with {self.array.shape[0]}")
        return OrtBuffer(self.array[start:stop])


class OrtContext:
    """One binding of a session's buffers to an ONNX Runtime session, by address: no copies."""

    def __init__(self, graph: OrtGraph) -> None:
        self._graph = graph
        self._binding = graph.session.io_binding()

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run the graph on the memory of the buffers; returns when done (see `Context`)."""
        graph, binding = self._graph, self._binding
        check_call(graph.spec, inputs, outputs)
        sources = {name: graph.place(buffer) for name, buffer in inputs.items()}
        targets = {name: graph.place(buffer) for name, buffer in outputs.items()}
        try:
            for name, place in sources.items():
                binding.bind_input(name, *place)
            for name, place in targets.items():
                binding.bind_output(name, *place)
            graph.session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:
            raise graph.failed(error) from error
        finally:
            # A binding would keep the memory of the last run in use.
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()


class OrtGraph:
    """An ONNX Runtime session; `context()` gives each user a binding of its own."""

    def __init__(self, path: Path, session: Any, spec: GraphSpec) -> None:
        self.spec = spec
        self.session = session
        self.name = path.name

    def context(self) -> OrtContext:
        """Return a new execution context."""
        return OrtContext(self)

    def place(self, buffer: Buffer) -> tuple[str, int, np.dtype[Any], tuple[int, ...], int]:
        """Return where a buffer lies, as bindings take it: device, index, dtype, shape, address."""
        array = array_of(buffer)
        return "cpu", 0, array.dtype, array.shape, array.ctypes.data

    def failed(self, error: Exception) -> BackendError:
        """Return our error for one of ONNX Runtime's."""
        return BackendError(f"{NAME}: graph {self.name} failed: {error}")


class OrtCpuBackend:
    """ONNX Runtime's CPU provider. Buffers are host arrays, so uploads and downloads are copies.

    Args:
        num_threads: threads inside one graph run; None leaves it to ONNX Runtime (one per physical
            core). Idle threads sleep instead of spinning: an embedded box has other work.
    """

    name = NAME
    precision_notes = (
        "fp32 runs as written, int8 with integer kernels; fp16 graphs run with fp32 arithmetic in "
        "some nodes, slower than fp32"
    )

    def __init__(self, num_threads: int | None = None) -> None:
        try:
            self._ort: Any = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise MissingExtraError("cpu", f"backend {NAME}", str(error)) from error
        self._num_threads = num_threads
        self.transfers = Transfers()

    def load(self, path: Path, spec: GraphSpec) -> Graph:
        """Load an ONNX file and compare its tensors with `spec`."""
        for tensor in (*spec.inputs, *spec.outputs):
            numpy_dtype(tensor.dtype, NAME)
        try:
            session = self._ort.InferenceSession(
                str(path), self._options(), providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise BackendError(f"{NAME}: cannot load {path}: {error}") from error
        check_session(path, session, spec)
        return OrtGraph(path, session, spec)

    def new_stream(self) -> Stream:
        """Return a stream that orders nothing: every call is done when it returns."""
        return HostStream()

    def empty(self, shape: Sequence[int], dtype: DType) -> Buffer:
        """Return a new buffer with undefined content."""
        return OrtBuffer(np.empty(shape, numpy_dtype(dtype, NAME)))

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
        return array_of(buffer)

    def _options(self) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3  # errors only; they reach the caller as BackendError
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Without it, int8 products saturate at 16 bits on x86-64 CPUs that have no VNNI.
        options.add_session_config_entry("session.x64quantprecision", "1")
        if self._num_threads is not None:
            options.intra_op_num_threads = self._num_threads
        return options


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


def array_of(buffer: Buffer) -> np.ndarray:
    """Return the memory behind a buffer of this backend, or refuse another one's."""
    if not isinstance(buffer, OrtBuffer):
        raise InternalError(f"backend {NAME} was given a buffer of device {buffer.device}")
    return buffer.array


def check_session(path: Path, session: Any, spec: GraphSpec) -> None:
    """Refuse a session whose tensors are not those that the manifest declares."""
    for kind, nodes, tensors in (
        ("inputs", session.get_inputs(), spec.inputs),
        ("outputs", session.get_outputs(), spec.outputs),
    ):
        in_file = {node.name: _ORT_TYPES.get(node.type, node.type) for node in nodes}
        declared = {tensor.name: tensor.dtype for tensor in tensors}
        if in_file != declared:
            raise BackendError(
                f"{path}: the graph has {kind} {in_file}, the manifest declares {declared}; "
                "export the bundle again"
            )
