"""ONNX file -> TensorRT network, and the proof that it has the types that the bundle states.

Since TensorRT 11 a graph decides its own precision and nothing is said about it: an fp32 graph
called fp16 builds, loads and runs at a quarter of the speed. So every type is counted.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from refsam_trt.backends.tensorrt.flavour import Flavour
from refsam_trt.backends.tensorrt.log import TrtLog
from refsam_trt.contract.precision import split_precision
from refsam_trt.contract.specs import GraphSpec
from refsam_trt.errors import PlanBuildError
from refsam_trt.onnx_file.reader import summarise_onnx

_FLOAT_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
_ALL_FLOATS = {"FLOAT", "HALF", "BF16", "FP8", "FP4"}
_TYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "float8_e4m3fn": "FP8",
    "int8": "INT8",
    "int64": "INT64",
    "bool": "BOOL",
}

LayerTypes = dict[str, dict[str, int]]


def parse_graph(flavour: Flavour, network: Any, logger: Any, log: TrtLog, path: Path) -> None:
    """Parse an ONNX file, its external data beside it, into an empty network.

    Raises:
        PlanBuildError: something in the graph is not supported.
    """
    trt = flavour.trt
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        problems = [f"node {error.node()}: {error.desc()}" for error in errors]
        raise PlanBuildError(
            f"{path}: {flavour.backend} {flavour.version} cannot parse this graph: "
            f"{'; '.join(problems) or log.errors()}; export the bundle with another --attention or "
            "--precision, or use a newer TensorRT"
        )


def stated_types(path: Path) -> dict[str, dict[str, int]]:
    """Return per operator and element type how many nodes an ONNX file has, without TensorRT."""
    types: dict[str, dict[str, int]] = {}
    for (operator, dtype), count in summarise_onnx(path).typed_nodes.items():
        types.setdefault(operator, {})[dtype] = count
    return types


def count_types(network: Any) -> LayerTypes:
    """Return per layer type and type of its first output how many layers there are."""
    counts: dict[str, Counter[str]] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.num_outputs:
            name, dtype = layer.type.name, layer.get_output(0).dtype.name
            counts.setdefault(name, Counter())[dtype] += 1
    return {name: dict(sorted(types.items())) for name, types in sorted(counts.items())}


def check_tensors(path: Path, network: Any, spec: GraphSpec) -> None:
    """Refuse a network whose inputs or outputs are not those of `spec`, or of another type.

    Raises:
        PlanBuildError: they differ.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    for kind, tensors, specs in (("input", inputs, spec.inputs), ("output", outputs, spec.outputs)):
        is_there = {tensor.name: tensor.dtype.name for tensor in tensors}
        expected = {tensor.name: _TYPES[tensor.dtype] for tensor in specs}
        if is_there != expected:
            raise PlanBuildError(
                f"{path}: TensorRT parsed {kind}s {is_there}, the bundle's manifest says "
                f"{expected}; export the bundle anew with refsam-export"
            )


def check_precision(
    path: Path, precision: str, layers: LayerTypes, stated: dict[str, dict[str, int]]
) -> None:
    """Refuse a network whose arithmetic is not of the precision that the bundle states.

    Args:
        path: of the ONNX file, for the message.
        precision: of the graph, such as `fp16` or `int8-fp16`; its nodes were held to that when the
            bundle was opened.
        layers: what `count_types` returned.
        stated: what `stated_types` returned.

    Raises:
        PlanBuildError: another floating-point type occurs, or the numbers differ.
    """
    quantised, base = split_precision(precision)
    allowed = {"FLOAT", _FLOAT_TYPES[base]} | ({_TYPES[quantised]} if quantised else set())
    # Weights may be stored in fp16 and cast: a constant computes nothing.
    used = {dtype for name, types in layers.items() if name != "CONSTANT" for dtype in types}
    used &= _ALL_FLOATS
    if wrong := sorted(used - allowed):
        raise PlanBuildError(
            f"{path}: the graph computes in {', '.join(wrong)}, but states "
            f"{precision}; export the bundle anew with refsam-export"
        )
    for layer, operators in ARITHMETIC.items():
        expected: Counter[str] = Counter()
        for operator in operators:
            for dtype, count in stated.get(operator, {}).items():
                # TensorRT gives a product of dequantised values the type that it hands on.
                is_quantised = operator == "MatMul" and dtype == quantised
                expected[_FLOAT_TYPES[base] if is_quantised else _TYPES.get(dtype, dtype)] += count
        if dict(expected) != layers.get(layer, {}):
            raise PlanBuildError(
                f"{path}: TensorRT parsed {layer} layers of types {layers.get(layer, {})}, the "
                f"graph has {dict(expected)}: the plan would not be {precision} as the graph is; "
                "use another version of TensorRT, or export the bundle anew with refsam-export"
            )


ARITHMETIC = {
    "MATRIX_MULTIPLY": ("MatMul", "Gemm"),
    "CONVOLUTION": ("Conv",),
    "DECONVOLUTION": ("ConvTranspose",),
    "QUANTIZE": ("QuantizeLinear",),
}
"""TensorRT layers that cost, or decide what these cost, and the ONNX operators that become them,
one for one."""
