"""What OpenVINO needs to be told, and what must not be believed of it."""

from __future__ import annotations

import importlib
import re
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from refsam_trt.contract.specs import DType, GraphSpec
from refsam_trt.errors import BackendError, MissingExtraError

_TYPES: dict[str, DType] = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i64": "int64",
    "boolean": "bool",
}
_PRODUCTS = frozenset({"FullyConnected", "MatMul"})
# "Exception from src/inference/src/cpp/core.cpp:97:" and the like stand before every message.
_ORIGIN = re.compile(r"(Exception from|Check '[^\n]*' failed at) \S+:\s*")
_IMPORT = threading.Lock()


def open_library(backend: str) -> Any:
    """Import OpenVINO without its telemetry.

    `import openvino` tells its maker that it was imported, over the network, unless the package
    that does so cannot be imported; then it takes a stub.
    """
    reporter = "openvino_telemetry"
    with _IMPORT:
        is_first = reporter not in sys.modules
        if is_first:
            sys.modules[reporter] = None  # type: ignore[assignment]
        try:
            return importlib.import_module("openvino")
        except ImportError as error:
            raise MissingExtraError("openvino", f"backend {backend}", str(error)) from error
        finally:
            if is_first:
                del sys.modules[reporter]


def run_request(request: Any) -> None:
    """Run a request to its end, whatever interrupts: it works on memory of ours.

    Its `infer` is not used: with one thread, 2026.4 returns from it as if nothing had happened when
    a node fails, and outputs stay as they were.
    """
    try:
        request.start_async()
    finally:
        request.wait()


def check_ports(path: Path, compiled: Any, spec: GraphSpec) -> None:
    """Refuse a model whose tensors are not those that the manifest declares."""
    for kind, ports, tensors in (
        ("inputs", compiled.inputs, spec.inputs),
        ("outputs", compiled.outputs, spec.outputs),
    ):
        declared = {tensor.name: tensor.dtype for tensor in tensors}
        in_file = {}
        for port in ports:
            names, dtype = port.get_names(), port.get_element_type().get_type_name()
            # A tensor may have several names, of which ours is the one that counts.
            for name in sorted(names & declared.keys()) or sorted(names)[:1]:
                in_file[name] = _TYPES.get(dtype, dtype)
        if in_file != declared:
            raise BackendError(
                f"{path}: the graph has {kind} {in_file}, the manifest declares {declared}; "
                "export the bundle again"
            )


def has_exact_int8(library: Any, core: Any, device: str, options: dict[str, Any]) -> bool:
    """Return whether sums of the largest 8-bit products are exact on a device, by trying one.

    Without instructions for it (VNNI on x86), OpenVINO adds them up in pairs of 16 bits.
    """
    op, depth = importlib.import_module("openvino.opset13"), 64
    x = op.parameter([-1, 16, depth], library.Type.f32, name="x")
    ends = [op.constant(np.float32(end)) for end in (-128, 127)]
    weights = op.convert(op.constant(np.full((depth, depth), 127, np.int8)), "f32")
    scaled = op.multiply(weights, op.constant(np.full((1, depth), 1 / 127, np.float32)))
    product = op.matmul(op.fake_quantize(x, *ends, *ends, 256), scaled, False, False)
    compiled = core.compile_model(library.Model([product], [x], "largest"), device, options)
    request = compiled.create_infer_request()
    request.set_input_tensor(library.Tensor(np.full((1, 16, depth), 127, np.float32)))
    run_request(request)
    return bool(np.allclose(request.get_output_tensor().data, 127 * depth, rtol=1e-4))


def count_products(compiled: Any) -> str:
    """Return how many matrix products run in which type, such as `48 i8, 16 f32`."""
    counts: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if "layerType" in info and info["layerType"].astype(str) in _PRODUCTS:
            counts[info["runtimePrecision"].astype(str)] += 1
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def told(error: Exception | str) -> str:
    """Return an error of OpenVINO on one line, without the places in its source code."""
    return " ".join(_ORIGIN.sub("", str(error)).split())
