"""What an .onnx file says of itself, read without the onnx package and without trusting it.

Reads what a bundle is checked for: versions, tensors at the border, operators and where external
data lies, and in which element types the nodes compute. Weights are skipped.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refsam_trt import limits
from refsam_trt.errors import BundleError
from refsam_trt.onnx_file.model import Unreadable, parse_model
from refsam_trt.onnx_file.types import OnnxNode, dtype_name, types_of

DEFAULT_DOMAIN = ""
_DEFAULT_DOMAIN_ALIAS = "ai.onnx"
# Attributes of `Constant` that hold the value itself.
_DECLARED = {
    "value_float": "float32",
    "value_floats": "float32",
    "value_int": "int64",
    "value_ints": "int64",
}

Dims = tuple[int | str | None, ...]
"""A size, a symbol, or None where nothing is said, per dim."""


@dataclass(frozen=True)
class OnnxTensor:
    """An input or output of the graph.

    `dtype` is numpy's name (or bfloat16, float8_e4m3fn), `type <n>` for a number that has none
    here, and empty for what is no tensor. `dims` is None where the file gives no shape.
    """

    name: str
    dtype: str
    dims: Dims | None


@dataclass(frozen=True)
class ExternalData:
    """Where the bytes of one tensor lie: `location` is relative to the folder of the .onnx file.

    Offset and length are in bytes; a length of None means that the file gives none.
    """

    location: str
    offset: int
    length: int | None


@dataclass(frozen=True)
class OnnxSummary:
    """An .onnx file in short; nodes, domains and external data include subgraphs and functions.

    `opsets` gives the version per imported domain, `node_types` counts nodes by operator type
    (`domain:type` outside the default domain), `domains` are all that are imported, defined or
    used. The default domain is written as the empty string. `dtypes` are the element types that
    the nodes compute in (`types.UNKNOWN` where none is known), a node's after those inside it, and
    `typed_nodes` counts nodes by operator type and element type.
    """

    ir_version: int
    opsets: dict[str, int]
    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]
    node_types: Counter[str]
    domains: frozenset[str]
    external_data: tuple[ExternalData, ...]
    dtypes: tuple[str, ...]
    typed_nodes: Counter[tuple[str, str]]


def summarise_onnx(path: Path) -> OnnxSummary:
    """Read an .onnx file.

    Time and memory are bounded by `limits.MAX_ONNX_BYTES`: hostile bytes take some seconds, and 55
    times their size.

    Raises:
        BundleError: the file cannot be read, is not an ONNX model, or exceeds a limit.
    """
    try:
        return _Walker().summary(parse_model(_read(path)))
    except Unreadable as error:
        raise BundleError(
            f"not an ONNX model that can be read ({error}); copy the bundle again, or export it "
            "anew with refsam-export",
            path,
        ) from error
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot be read ({error}); check path and permissions", path) from error


def _read(path: Path) -> bytes:
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise Unreadable("it is no regular file")
    if not 0 < info.st_size <= limits.MAX_ONNX_BYTES:
        raise Unreadable(f"{info.st_size} bytes; 1 to {limits.MAX_ONNX_BYTES} expected")
    with path.open("rb") as file:
        return file.read(info.st_size)


class _Walker:
    """One walk over one model; collects while it descends."""

    def __init__(self) -> None:
        self._num_parts = 0
        self._num_name_chars = 0
        self._node_types: Counter[str] = Counter()
        self._domains: set[str] = set()
        self._external: list[ExternalData] = []
        self._nodes: list[OnnxNode] = []
        self._dtypes: dict[str, str] = {}

    def summary(self, model: Any) -> OnnxSummary:
        """Return what a ModelProto says."""
        opsets = {self._domain(opset): opset.version for opset in self._each(model.opset_import)}
        if not model.HasField("graph") or not opsets:
            raise Unreadable("it holds no graph, or names no operator set")
        inputs, outputs = self._border(model.graph.input), self._border(model.graph.output)
        self._graph(model.graph, depth=0)
        for training in self._each(model.training_info):
            self._graph(training.initialization, depth=1)
            self._graph(training.algorithm, depth=1)
        for function in self._each(model.functions):
            self._function(function)
        dtypes = types_of(self._nodes, {t.name: t.dtype for t in inputs} | self._dtypes)
        operators = (node.op_type for node in self._nodes)
        return OnnxSummary(
            model.ir_version,
            opsets,
            inputs,
            outputs,
            self._node_types,
            frozenset(self._domains),
            tuple(self._external),
            tuple(dtypes),
            Counter(zip(operators, dtypes, strict=True)),
        )

    def _each(self, parts: Sequence[Any]) -> Sequence[Any]:
        self._num_parts += len(parts)
        if self._num_parts > limits.MAX_ONNX_PARTS:
            raise Unreadable(f"more than {limits.MAX_ONNX_PARTS} parts")
        return parts

    def _function(self, function: Any) -> None:
        self._domain(function)
        for opset in self._each(function.opset_import):
            self._domain(opset)
        for node in self._each(function.node):
            self._node(node, depth=1)
        for attribute in self._each(function.attribute_proto):
            self._attribute(attribute, depth=1)

    def _graph(self, graph: Any, depth: int) -> None:
        if depth > limits.MAX_ONNX_DEPTH:
            raise Unreadable(f"subgraphs nested more than {limits.MAX_ONNX_DEPTH} deep")
        for tensor in self._each(graph.initializer):
            (name,) = self._names([tensor.name])
            self._dtypes[name] = self._tensor(tensor)
        for sparse in self._each(graph.sparse_initializer):
            self._sparse(sparse)
        for node in self._each(graph.node):
            self._node(node, depth)

    def _node(self, node: Any, depth: int) -> None:
        declared = ""
        for attribute in self._each(node.attribute):
            declared = self._attribute(attribute, depth) or declared
        domain, op_type = self._domain(node), _text(node.op_type)
        op_type = f"{domain}:{op_type}" if domain else op_type
        self._node_types[op_type] += 1
        if len(self._node_types) > limits.MAX_ONNX_OPERATORS:
            raise Unreadable(f"more than {limits.MAX_ONNX_OPERATORS} different operator types")
        inputs, outputs = self._names(node.input), self._names(node.output)
        self._nodes.append(OnnxNode(op_type, inputs, outputs, declared))
        if len(self._nodes) > limits.MAX_ONNX_NODES:
            raise Unreadable(f"more than {limits.MAX_ONNX_NODES} nodes")

    def _attribute(self, attribute: Any, depth: int) -> str:
        """Return the element type that an attribute gives its node's outputs, empty for none."""
        name, dtype = attribute.name, ""
        if attribute.HasField("t"):
            dtype = self._tensor(attribute.t)
        for tensor in self._each(attribute.tensors):
            self._tensor(tensor)
        if attribute.HasField("sparse_tensor"):
            self._sparse(attribute.sparse_tensor)
        for sparse in self._each(attribute.sparse_tensors):
            self._sparse(sparse)
        if attribute.HasField("g"):
            self._graph(attribute.g, depth + 1)
        for graph in self._each(attribute.graphs):
            self._graph(graph, depth + 1)
        if name == "to":
            return dtype_name(attribute.i)
        return dtype if name == "value" else _DECLARED.get(name, "")

    def _sparse(self, sparse: Any) -> None:
        self._tensor(sparse.values)
        self._tensor(sparse.indices)

    def _tensor(self, tensor: Any) -> str:
        """Note where a tensor's bytes lie; return its element type."""
        if tensor.data_location or tensor.external_data:
            self._external.append(_external_data(self._each(tensor.external_data)))
            if len(self._external) > limits.MAX_EXTERNAL_TENSORS:
                raise Unreadable(f"more than {limits.MAX_EXTERNAL_TENSORS} external tensors")
        return dtype_name(tensor.data_type)

    def _names(self, names: Sequence[str]) -> tuple[str, ...]:
        names = tuple(self._each(names))
        _text(max(names, key=len, default=""))
        self._num_name_chars += sum(map(len, names))
        if self._num_name_chars > limits.MAX_ONNX_NAME_CHARS:
            raise Unreadable(f"more than {limits.MAX_ONNX_NAME_CHARS} characters of tensor names")
        return names

    def _domain(self, owner: Any) -> str:
        domain = _text(owner.domain)
        domain = DEFAULT_DOMAIN if domain == _DEFAULT_DOMAIN_ALIAS else domain
        self._domains.add(domain)
        if len(self._domains) > limits.MAX_ONNX_OPERATORS:
            raise Unreadable(f"more than {limits.MAX_ONNX_OPERATORS} operator domains")
        return domain

    def _border(self, values: Sequence[Any]) -> tuple[OnnxTensor, ...]:
        if len(values) > limits.MAX_ONNX_TENSORS:
            raise Unreadable(f"more than {limits.MAX_ONNX_TENSORS} inputs or outputs")
        return tuple(map(_border_tensor, values))


def _border_tensor(value: Any) -> OnnxTensor:
    """Read a ValueInfoProto."""
    name, tensor = _text(value.name), value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return OnnxTensor(name, "", None)
    dims = tuple(_dims(tensor.shape.dim)) if tensor.HasField("shape") else None
    return OnnxTensor(name, dtype_name(tensor.elem_type), dims)


def _dims(dims: Sequence[Any]) -> Iterator[int | str | None]:
    if len(dims) > limits.MAX_ONNX_DIMS:
        raise Unreadable(f"a tensor of more than {limits.MAX_ONNX_DIMS} dims")
    for dim in dims:
        if len(dim.dim_param) > limits.MAX_ONNX_DIM_LENGTH:
            raise Unreadable(f"a dim of {len(dim.dim_param)} characters")
        yield dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None


def _external_data(pairs: Sequence[Any]) -> ExternalData:
    entries: dict[str, str] = {}
    for pair in pairs:
        key, value = _text(pair.key), _text(pair.value)
        if entries.setdefault(key, value) != value:
            raise Unreadable(f"external data gives {key!r} twice")
    if "location" not in entries:
        raise Unreadable("external data without a location")
    length = _size("length", entries["length"]) if "length" in entries else None
    return ExternalData(entries["location"], _size("offset", entries.get("offset", "0")), length)


def _size(key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Unreadable(f"external data with {key} {text[:40]!r}")
    return int(text)


def _text(text: str) -> str:
    if len(text) > limits.MAX_ONNX_STRING_CHARS:
        raise Unreadable(
            f"a string of {len(text)} characters, more than the {limits.MAX_ONNX_STRING_CHARS} "
            "allowed"
        )
    return text
