"""A stand-in for TensorRT and TensorRT-RTX: builds nothing, but objects to what the real API lacks.

It has exactly the names of the version that it plays (from the lists of the real APIs) and no
others. Its plans are the ONNX file itself, which ONNX Runtime runs on the addresses it is given, so
it needs memory that the host can read (see `fake_cuda`).
"""

import ctypes
import json
from enum import Enum, IntFlag
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fake_cuda
import numpy as np
import onnx
import onnxruntime

DATA = Path(__file__).parents[1] / "engines" / "data"
MAGIC = b"fake plan of "
_LAYERS = {
    "MatMul": "MATRIX_MULTIPLY",
    "Gemm": "MATRIX_MULTIPLY",
    "Conv": "CONVOLUTION",
    "ConvTranspose": "DECONVOLUTION",
    "Softmax": "SOFTMAX",
    "QuantizeLinear": "QUANTIZE",
}
_DTYPES = {1: "FLOAT", 10: "HALF", 16: "BF16", 7: "INT64", 9: "BOOL", 6: "INT32", 3: "INT8"}


def fake_tensorrt(version: str = "11.4.0.106") -> ModuleType:
    """Return a module that plays TensorRT of a version; `module.calls` lists what was called.

    Versions that begin with `rtx-` are TensorRT-RTX, whose plans are found valid unless
    `module.diagnostics` names why not.
    """
    names = json.loads((DATA / f"api_{version}.json").read_text())["names"]
    trt: Any = ModuleType("tensorrt")
    trt.__version__ = version.removeprefix("rtx-")
    trt.__spec__ = ModuleSpec("tensorrt", None)  # other libraries look whether it is there
    trt.calls = []
    trt.fails_to_build = False
    trt.fails_to_deserialise = False
    trt.fails_to_run = False
    trt.has_no_room = False
    trt.diagnostics = None
    for name, entry in names.items():
        if entry["kind"] == "enum":
            setattr(trt, name, Enum(name, entry["members"]))
    if version.startswith("rtx-"):
        members = names["EngineInvalidityDiagnostics"]["members"]
        trt.EngineInvalidityDiagnostics = IntFlag("EngineInvalidityDiagnostics", members)
    trt.NetworkDefinitionCreationFlag.__int__ = lambda flag: 1 if version[:2] == "10" else 0
    logger = type("ILogger", (), {"__init__": lambda self: None})
    severities = ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"]
    logger.Severity = Enum("Severity", severities)
    trt.ILogger = logger
    trt.IProfiler = type("IProfiler", (), {"__init__": lambda self: None})
    trt.IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})
    trt.Builder = lambda log: _Builder(trt, names, log)
    trt.OnnxParser = lambda network, log: _Parser(trt, network)
    trt.Runtime = lambda log: _Runtime(trt, names, log)
    return trt


class _Checked:
    """Refuses attributes that the real class of that version does not have."""

    _class = ""

    def __init__(self, names: dict[str, Any]) -> None:
        object.__setattr__(self, "_members", names[self._class]["members"])

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in object.__getattribute__(self, "_members"):
            raise AttributeError(f"{type(self)._class} has no {name}")
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in self._members:
            raise AttributeError(f"{type(self)._class} has no {name}")
        object.__setattr__(self, name, value)


class _Builder(_Checked):
    _class = "Builder"

    def __init__(self, trt: Any, names: dict[str, Any], log: Any) -> None:
        super().__init__(names)
        self._trt, self._names, self._log = trt, names, log

    def create_network(self, flags: int) -> Any:
        self._trt.calls.append(("create_network", flags))
        return SimpleNamespace(num_layers=0, path=None)

    def create_builder_config(self) -> Any:
        return _Config(self._trt, self._names)

    def create_optimization_profile(self) -> Any:
        def set_shape(name: str, *shapes: tuple[int, ...]) -> None:
            self._trt.calls.append(("set_shape", name, *shapes))

        return SimpleNamespace(set_shape=set_shape)

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        monitor, severity = config.progress_monitor, self._trt.ILogger.Severity
        monitor.phase_start("Building engine", None, 2)
        if not all([monitor.step_complete("Building engine", step) for step in range(2)]):
            return None
        monitor.phase_finish("Building engine")
        if self._trt.fails_to_build:
            self._log.log(severity.INTERNAL_ERROR, "no kernel fits")
            return None
        self._log.log(severity.WARNING, "Detected layernorm nodes in FP16, may cause overflow")
        self._log.log(severity.WARNING, "Using default profile")
        self._log.log(severity.VERBOSE, "a line per layer")
        self._log.log(severity.INFO, "Total Activation Memory: 1024 bytes")
        return MAGIC + str(network.path).encode()


class _Config(_Checked):
    _class = "IBuilderConfig"

    def __init__(self, trt: Any, names: dict[str, Any]) -> None:
        super().__init__(names)
        self._trt, self._cache = trt, None
        self.progress_monitor = None

    def clear_flag(self, flag: Enum) -> None:
        self._trt.calls.append(("clear_flag", flag.name))

    def set_memory_pool_limit(self, pool: Enum, size: int) -> None:
        self._trt.calls.append(("set_memory_pool_limit", pool.name, size))

    def add_optimization_profile(self, profile: Any) -> int:
        return 0

    def create_timing_cache(self, raw: bytes) -> Any:
        return None if raw == b"broken" else SimpleNamespace(serialize=lambda: raw + b"+")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return not ignore_mismatch

    def get_timing_cache(self) -> Any:
        return self._cache


class _Parser:
    """Reads the ONNX file for its tensors and nodes; every layer gets the type of its ONNX type."""

    def __init__(self, trt: Any, network: Any) -> None:
        self._trt, self._network = trt, network
        self.num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        model = onnx.shape_inference.infer_shapes(onnx.load(path))
        graph, network, trt = model.graph, self._network, self._trt
        values = [*graph.value_info, *graph.input, *graph.output]
        types = {v.name: trt.DataType[_DTYPES[v.type.tensor_type.elem_type]] for v in values}
        network.path = path
        layers = [
            SimpleNamespace(
                type=SimpleNamespace(name=_LAYERS.get(node.op_type, "ELEMENTWISE")),
                num_outputs=int(node.output[0] in types),
                get_output=lambda index, name=node.output[0]: SimpleNamespace(dtype=types[name]),
            )
            for node in graph.node
        ]
        network.num_layers, network.get_layer = len(layers), layers.__getitem__
        for kind, tensors in (("input", graph.input), ("output", graph.output)):
            found = [SimpleNamespace(name=t.name, dtype=types[t.name]) for t in tensors]
            setattr(network, f"num_{kind}s", len(found))
            setattr(network, f"get_{kind}", found.__getitem__)
        return True


class _Runtime(_Checked):
    _class = "Runtime"

    def __init__(self, trt: Any, names: dict[str, Any], log: Any) -> None:
        super().__init__(names)
        trt.calls.append(("Runtime",))
        self._trt, self._names, self._log = trt, names, log

    engine_header_size = 64  # RTX only, as the rest of these

    def get_engine_validity(self, header: bytes) -> tuple[Any, int]:
        self._trt.calls.append(("get_engine_validity", len(header)))
        if self._trt.diagnostics is None:
            return self._trt.EngineValidity.VALID, 0
        return self._trt.EngineValidity.INVALID, self._trt.diagnostics

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        self._trt.calls.append(("deserialize_cuda_engine",))
        if self._trt.fails_to_deserialise:
            self._log.log(self._trt.ILogger.Severity.ERROR, "Platform specific tag mismatch")
            return None
        return _Engine(self._trt, self._names, bytes(plan).removeprefix(MAGIC).decode())


class _Engine(_Checked):
    _class = "ICudaEngine"

    def __init__(self, trt: Any, names: dict[str, Any], path: str) -> None:
        super().__init__(names)
        self._trt, self._names = trt, names
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._tensors = [*self._session.get_inputs(), *self._session.get_outputs()]
        self.num_io_tensors = len(self._tensors)
        self.num_layers = 7
        self.device_memory_size_v2 = 2048

    def get_tensor_name(self, index: int) -> str:
        return str(self._tensors[index].name)

    def create_runtime_config(self) -> Any:
        return _RuntimeConfig(self._names)

    def create_execution_context(self, how: Any = None) -> Any:
        if isinstance(how, _RuntimeConfig):
            how = how.cuda_graph_strategy
        self._trt.calls.append(("create_execution_context", how.name if how else None))
        if self._trt.has_no_room:
            return None
        return _Context(self._trt, self._names, self._session)

    def create_engine_inspector(self) -> Any:
        return _Inspector(self._names)


class _RuntimeConfig(_Checked):
    _class = "IRuntimeConfig"
    cuda_graph_strategy: Any = None


class _Inspector(_Checked):
    _class = "EngineInspector"

    def get_engine_information(self, layer_format: Enum) -> str:
        assert layer_format.name == "JSON"
        layers = [{"Name": "a", "TacticName": "_gemm_mha_v2_0x"}, {"Name": "b"}]
        return json.dumps({"Layers": layers})


class _Context(_Checked):
    _class = "IExecutionContext"
    profiler: Any = None

    def __init__(self, trt: Any, names: dict[str, Any], session: Any) -> None:
        super().__init__(names)
        self._trt, self._session = trt, session
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return all(size < 1000 for size in shape)

    def set_device_memory(self, address: int, size: int) -> None:
        self._trt.calls.append(("set_device_memory", address, size))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address != 0

    def infer_shapes(self) -> list[str]:
        return [i.name for i in self._session.get_inputs() if i.name not in self._shapes]

    def execute_async_v3(self, stream_handle: int) -> bool:
        self._trt.calls.append(("execute_async_v3", stream_handle))
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        fake_cuda.enqueue(stream_handle, lambda: self._execute(shapes, addresses))
        return not self._trt.fails_to_run

    def _execute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        feeds = {
            tensor.name: _view(addresses[tensor.name], shapes[tensor.name], tensor.type)
            for tensor in self._session.get_inputs()
        }
        names = [tensor.name for tensor in self._session.get_outputs()]
        for name, found in zip(names, self._session.run(names, feeds), strict=True):
            ctypes.memmove(addresses[name], found.tobytes(), found.nbytes)
        if self.profiler is not None:
            for layer, ms in (("fast", 0.25), ("slow", 1.5)):
                self.profiler.report_layer_time(layer, ms)


_ORT_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


def _view(address: int, shape: tuple[int, ...], kind: str) -> np.ndarray:
    dtype = np.dtype(_ORT_DTYPES[kind])
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    return raw.view(dtype).reshape(shape).copy()
