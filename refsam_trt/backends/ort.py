"""ONNX Runtime on the CPU: the embedded default and the referee of every other backend."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refsam_trt.backends.base import Buffer, Graph, check_call, numpy_dtype
from refsam_trt.backends.host import HostMemory, array_of
from refsam_trt.contract.specs import DType, GraphSpec
from refsam_trt.errors import BackendError, MissingExtraError

NAME = "ort-cpu"

_ORT_TYPES: dict[str, DType] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


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
        array = array_of(buffer, NAME)
        return "cpu", 0, array.dtype, array.shape, array.ctypes.data

    def failed(self, error: Exception) -> BackendError:
        """Return our error for one of ONNX Runtime's."""
        return BackendError(f"{NAME}: graph {self.name} failed: {error}")


class OrtCpuBackend(HostMemory):
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
        super().__init__()
        try:
            self._ort: Any = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise MissingExtraError("cpu", f"backend {NAME}", str(error)) from error
        self._num_threads = num_threads

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

    def _options(self) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3  # errors only; they reach the caller as BackendError
        # A second plan of all activations beside those of the first run: 3.7 GiB instead of 2.1
        # for ViT-B (1.31), and not faster.
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Without it, int8 products saturate at 16 bits on x86-64 CPUs that have no VNNI.
        options.add_session_config_entry("session.x64quantprecision", "1")
        if self._num_threads is not None:
            options.intra_op_num_threads = self._num_threads
        return options


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
