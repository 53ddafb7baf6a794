"""One PyTorch graph -> one ONNX file with external data, held to the contract.

Opset 20: one node per GELU, fp16 scales for Q/DQ, and the ceiling of TensorRT 10.3's parser.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from torch import Tensor, nn

from refsam_export.onnx.weight_storage import WeightStorage, store_exact_fp16
from refsam_trt.contract.specs import GraphSpec, TensorSpec
from refsam_trt.errors import InternalError

OPSET = 20
# `Attention` is unknown to TensorRT 10.3, `NonZero` has no kernel in TensorRT-RTX, `If` hides work.
FORBIDDEN_OPS = frozenset({"Attention", "If", "Loop", "NonZero", "Scan"})
# No two alike and none 1: `torch.export` would take equal sizes for one, and a size 1 for fixed.
_EXAMPLE_SIZES = {"M": 2, "B": 3, "N": 5}


def export_graph(
    module: nn.Module,
    spec: GraphSpec,
    path: Path,
    limits: Mapping[str, int],
    weight_storage: WeightStorage = "fp32",
    edit: Callable[[Any], None] | None = None,
) -> dict[str, int]:
    """Export a graph.

    Args:
        module: takes `spec.inputs` in order, returns `spec.outputs` in order.
        spec: the contract; its symbols become dynamic dims.
        path: `.onnx` file to write; weights go to `path.name + ".data"` beside it.
        limits: largest size of each symbol.
        weight_storage: `fp16` stores large weights so wherever that changes no value.
        edit: called with the `onnx_ir.Model` before it is checked and written, while its nodes
            still know the modules that they are from (`module_of`).

    Returns:
        How many nodes of each operator type the graph has.

    Raises:
        InternalError: the exported graph breaks the contract, holds a forbidden operator, or does
            not pass ONNX's checker.
    """
    program = onnx_program(module, spec, limits)
    if edit is not None:
        edit(program.model)
    _finish(program.model, spec)
    if weight_storage == "fp16":
        store_exact_fp16(program.model)
    # Small tensors stay in the file itself: shape inference reads the shapes among them.
    onnx_ir.save(program.model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
    _check(path)
    return node_types(program.model)


def _check(path: Path) -> None:
    """Let ONNX's own checker look at every type and shape."""
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InternalError(f"{path.name}: the ONNX checker refuses it: {error}") from error


def onnx_program(
    module: nn.Module, spec: GraphSpec, limits: Mapping[str, int], *, optimize: bool = True
) -> Any:
    """Return `torch.onnx.ONNXProgram` of a graph; arguments as of `export_graph`.

    Its `exported_program` is what PyTorch computes: a node there and a tensor of the ONNX graph
    that have the same name have the same value, optimised or not.
    """
    examples, shapes = example_inputs(spec, limits)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=(shapes,) if is_variadic(module) else shapes,
            external_data=True,
            optimize=optimize,
            verbose=False,
        )
    if program is None:
        raise InternalError("torch.onnx.export returned nothing")
    return program


def example_inputs(
    spec: GraphSpec, limits: Mapping[str, int]
) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Return inputs to trace a graph with, and the dynamic dims of each."""
    # The dims need names of their own: a bare "N" is a function to sympy.
    dims = {s: torch.export.Dim(f"num_{s.lower()}", min=1, max=limits[s]) for s in limits}
    examples = tuple(_example(tensor) for tensor in spec.inputs)
    return examples, tuple(_dynamic_dims(tensor, dims) for tensor in spec.inputs)


def module_of(node: Any) -> str:
    """Return the path of the module that a node is from, "" where nothing tells.

    Only until `export_graph` has written the graph: the file does not name modules.
    """
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    return str(scopes[-2]) if len(scopes) > 1 else ""  # the last one is the operation's own name


def node_types(model: Any) -> dict[str, int]:
    """Count the nodes of each operator type, sub-graphs included."""
    return dict(sorted(Counter(node.op_type for node in model.graph.all_nodes()).items()))


def _example(tensor: TensorSpec) -> Tensor:
    shape = tensor.shape(_EXAMPLE_SIZES)
    dtype = getattr(torch, tensor.dtype)
    if tensor.dtype in ("bool", "int64"):
        return torch.ones(shape, dtype=dtype)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _dynamic_dims(tensor: TensorSpec, dims: Mapping[str, Any]) -> dict[int, Any]:
    dynamic: dict[int, Any] = {}
    for axis, dim in enumerate(tensor.dims):
        if isinstance(dim, str):
            symbol, _, offset = dim.partition("+")
            dynamic[axis] = dims[symbol] + int(offset) if offset else dims[symbol]
    return dynamic


def is_variadic(module: nn.Module) -> bool:
    """Whether a module takes its inputs as `*inputs`, one argument to `torch.export`."""
    return bool(module.forward.__code__.co_flags & inspect.CO_VARARGS)


def _finish(model: Any, spec: GraphSpec) -> None:
    """Drop the exporter's notes (they hold paths of this machine) and write the contract's dims."""
    model.doc_string = None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    for values, tensors in (
        (model.graph.inputs, spec.inputs),
        (model.graph.outputs, spec.outputs),
    ):
        if [value.name for value in values] != [tensor.name for tensor in tensors]:
            raise InternalError(f"exported tensors {[v.name for v in values]} break the contract")
        for value, tensor in zip(values, tensors, strict=True):
            value.shape = onnx_ir.Shape(tensor.dims)
    if forbidden := FORBIDDEN_OPS & set(node_types(model)):
        raise InternalError(f"exported graph holds forbidden operators {sorted(forbidden)}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's progress lines and its warnings about packages we do not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
