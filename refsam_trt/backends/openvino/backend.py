"""OpenVINO on the bundle's own graphs: CPUs, and by name Intel's GPUs and NPUs.

`openvino-gpu` and `openvino-npu` have never run: no such device was at hand (docs/proof/limits.md).
Left to itself, OpenVINO computes fp32 graphs in bf16 wherever a CPU can, and saturates int8
products where it has no instructions for them. So the precision is always set and read back, and
both are refused where they would go wrong.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from refsam_trt.backends.base import Buffer, Graph, check_call, numpy_dtype
from refsam_trt.backends.host import HostMemory, array_of
from refsam_trt.backends.openvino.library import (
    check_ports,
    count_products,
    has_exact_int8,
    open_library,
    run_request,
    told,
)
from refsam_trt.contract.specs import GraphSpec
from refsam_trt.errors import BackendError

CPU, GPU, NPU = "openvino-cpu", "openvino-gpu", "openvino-npu"
DEVICES = {CPU: "CPU", GPU: "GPU", NPU: "NPU"}
"""Backend -> device, as OpenVINO calls it."""

_HINTS = {"fp32": "f32", "bf16": "bf16"}
_LOG = logging.getLogger("refsam_trt")


class OpenVinoContext:
    """Infer requests, whose tensors are the memory of a session's buffers: no copies.

    Between runs it knows addresses that may be stale, so every run sets all of them anew.
    """

    def __init__(self, graph: OpenVinoGraph) -> None:
        self._graph = graph
        self._requests: dict[bool, Any] = {}

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run the graph on the memory of the buffers; returns when done (see `Context`)."""
        graph = self._graph
        check_call(graph.spec, inputs, outputs)
        tensors = {name: graph.tensor(each) for name, each in {**inputs, **outputs}.items()}
        is_usual = graph.is_usual(inputs)
        try:
            if is_usual not in self._requests:
                self._requests[is_usual] = graph.compiled(is_usual).create_infer_request()
            for name, tensor in tensors.items():
                self._requests[is_usual].set_tensor(name, tensor)
            run_request(self._requests[is_usual])
        except Exception as error:
            raise graph.failed(error) from error
        for name, buffer in outputs.items():
            # OpenVINO shrinks a tensor that is too large, and leaves the rest as it was.
            if (shape := tuple(tensors[name].shape)) != buffer.shape:
                raise graph.failed(f"output {name!r} is {shape}, expected was {buffer.shape}")


class OpenVinoGraph:
    """A model; each of its contexts has infer requests of its own.

    Graphs with one symbol, such as the image encoder, are compiled for size 1 alone, which made
    that of `vitb` 9 % faster; what takes other sizes is compiled when they first come.

    Args:
        backend: that loaded it.
        path: of its file.
        spec: its tensors.
        compile_for: returns the model compiled for sizes of its symbols, or for any where None.
    """

    def __init__(
        self,
        backend: OpenVinoBackend,
        path: Path,
        spec: GraphSpec,
        compile_for: Callable[[dict[str, int] | None], Any],
    ) -> None:
        self.spec = spec
        self.name = path.name
        self._backend = backend
        self._compile_for = compile_for
        symbols = {symbol for tensor in spec.inputs for symbol in tensor.symbols}
        self._usual = dict.fromkeys(symbols, 1) if len(symbols) == 1 else None
        self._lock = threading.Lock()
        self._compiled = {self._usual is not None: compile_for(self._usual)}

    def is_usual(self, inputs: Mapping[str, Buffer]) -> bool:
        """Return whether inputs are of the sizes that it was compiled for at first."""
        usual = self._usual
        if usual is None:
            return False
        return all(inputs[tensor.name].shape == tensor.shape(usual) for tensor in self.spec.inputs)

    def compiled(self, is_usual: bool) -> Any:
        """Return the model compiled for its usual sizes, or for any."""
        with self._lock:
            if is_usual not in self._compiled:
                _LOG.info("%s: %s is compiled for other sizes", self._backend.name, self.name)
                self._compiled[is_usual] = self._compile_for(None)
            return self._compiled[is_usual]

    def context(self) -> OpenVinoContext:
        """Return a new execution context."""
        return OpenVinoContext(self)

    def tensor(self, buffer: Buffer) -> Any:
        """Return a tensor of OpenVINO on the memory of a buffer."""
        backend = self._backend
        return backend.library.Tensor(array_of(buffer, backend.name), shared_memory=True)

    def failed(self, error: Exception | str) -> BackendError:
        """Return our error for one of OpenVINO's."""
        return BackendError(f"{self._backend.name}: graph {self.name} failed: {told(error)}")


class OpenVinoBackend(HostMemory):
    """OpenVINO. Buffers are host arrays, so uploads and downloads are copies.

    Args:
        num_threads: threads inside one graph run; None leaves it to OpenVINO (one per physical
            core). They are not pinned to cores: an embedded box has other work.
        name: which of `DEVICES` computes.
        arithmetic: `bf16` multiplies fp32 graphs in bf16; what only depends on an expression stays
            fp32, as it costs next to nothing. None computes as the graphs are written.

    Raises:
        BackendError: no such device, or one without that arithmetic.
        MissingExtraError: OpenVINO is not installed.
    """

    def __init__(
        self, num_threads: int | None = None, name: str = CPU, arithmetic: str | None = None
    ) -> None:
        super().__init__()
        self.name = name
        self.library: Any = open_library(name)
        self._device, self._num_threads = DEVICES[name], num_threads
        self._arithmetic = arithmetic or "fp32"
        self._core = self.library.Core()
        devices = [device.partition(".")[0] for device in self._core.available_devices]
        if self._device not in devices:
            raise BackendError(
                f"backend {name}: OpenVINO has no {self._device} on this machine, only "
                f"{', '.join(devices)}; install the driver of the device, or use {CPU}"
            )
        if self._arithmetic == "bf16" and not self._has_bf16:
            raise BackendError(
                f"backend {name} cannot compute in bf16: this CPU has no instructions for it "
                f"(OpenVINO lists {', '.join(self._capabilities)}); leave the precision out, or "
                "take fp32"
            )

    @property
    def precision_notes(self) -> str:
        """One sentence: which precisions run here, and how exactly."""
        if self._arithmetic == "bf16":
            return "fp32 graphs in bf16, as asked for; the text encoder in fp32"
        notes = "fp32 runs as written; fp16 graphs with fp32 arithmetic on their fp16 weights"
        if self.name != CPU:
            return f"{notes}; nothing has run on this device yet"
        bf16 = "fp32 graphs on request" if self._has_bf16 else "not on this CPU"
        int8 = (
            "integer kernels"
            if self._has_exact_int8
            else "refused, as sums of products overflow on this CPU"
        )
        return f"{notes}; bf16: {bf16}; int8: {int8}"

    def load(self, path: Path, spec: GraphSpec) -> Graph:
        """Load an ONNX file and compare its tensors with `spec`.

        Weights in files beside it are read from where the file says: bundles are checked for that.
        """
        for tensor in (*spec.inputs, *spec.outputs):
            numpy_dtype(tensor.dtype, self.name)
        arithmetic = "fp32" if _is_of_expressions(spec) else self._arithmetic
        try:
            model = self._core.read_model(str(path))
        except Exception as error:
            raise BackendError(f"{self.name}: cannot load {path}: {told(error)}") from error
        is_quantised = self._check_types(path, model, arithmetic)

        def compile_for(sizes: dict[str, int] | None) -> Any:
            compiled = self._compiled(path, model, spec, sizes, arithmetic)
            if is_quantised:
                _LOG.info("%s: %s multiplies in %s", self.name, path.name, count_products(compiled))
            return compiled

        return OpenVinoGraph(self, path, spec, compile_for)

    def _compiled(
        self,
        path: Path,
        model: Any,
        spec: GraphSpec,
        sizes: dict[str, int] | None,
        arithmetic: str,
    ) -> Any:
        try:
            if sizes is not None:
                model = model.clone()
                model.reshape({tensor.name: tensor.shape(sizes) for tensor in spec.inputs})
            compiled = self._core.compile_model(model, self._device, self._options(arithmetic))
        except Exception as error:
            raise BackendError(f"{self.name}: cannot load {path}: {told(error)}") from error
        check_ports(path, compiled, spec)
        self._check_hint(path, compiled, arithmetic)
        return compiled

    def _options(self, arithmetic: str) -> dict[str, Any]:
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[arithmetic],
            # Otherwise it may quantise activations of its own accord.
            "EXECUTION_MODE_HINT": "ACCURACY",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if self.name == CPU:
            options |= {"NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
        if self._num_threads is not None:
            options["INFERENCE_NUM_THREADS"] = self._num_threads
        return options

    def _check_types(self, path: Path, model: Any, arithmetic: str) -> bool:
        """Refuse graphs that would run as something else; return whether it is quantised."""
        nodes = model.get_ops()
        is_quantised = any(node.get_type_name() == "FakeQuantize" for node in nodes)
        types = {output.get_element_type().get_type_name() for n in nodes for output in n.outputs()}
        if "bf16" in types:
            raise BackendError(
                f"{self.name}: {path} is written in bf16, which would run in fp32; take "
                "precision=bf16 on an fp32 variant of the bundle"
            )
        if is_quantised and arithmetic != "fp32":
            raise BackendError(f"{self.name}: {path} is quantised; {arithmetic} is for fp32 graphs")
        if is_quantised and not self._has_exact_int8:
            raise BackendError(
                f"{self.name} cannot run {path}: it is quantised, and OpenVINO's sums of 8-bit "
                "products overflow here, as on x86 CPUs without VNNI, which spoils masks; use "
                "backend ort-cpu, or an fp32 variant of the bundle"
            )
        return is_quantised

    def _check_hint(self, path: Path, compiled: Any, arithmetic: str) -> None:
        hint = compiled.get_property("INFERENCE_PRECISION_HINT")
        name = getattr(hint, "get_type_name", lambda: str(hint))()
        if name != _HINTS[arithmetic]:
            raise BackendError(
                f"{self.name}: {path} was compiled for {name}, not for {_HINTS[arithmetic]}; use "
                "another backend"
            )

    @property
    def _capabilities(self) -> list[str]:
        return list(self._core.get_property(self._device, "OPTIMIZATION_CAPABILITIES"))

    @property
    def _has_bf16(self) -> bool:
        return self._device == "CPU" and "BF16" in self._capabilities

    @cached_property
    def _has_exact_int8(self) -> bool:
        """Whether sums of the largest 8-bit products are exact: tried once, 0.1 s."""
        return has_exact_int8(self.library, self._core, self._device, self._options("fp32"))


def _is_of_expressions(spec: GraphSpec) -> bool:
    return all(tensor.scope == "expression" for tensor in spec.inputs)
