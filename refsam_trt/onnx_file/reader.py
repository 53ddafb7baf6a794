"""What an .onnx file says of itself, read without the onnx package and without trusting it.

Reads what a bundle is checked for: versions, tensors at the border, operators and where external
data lies, in which element types the nodes compute, and what the file says of shapes inside the
graph. Weights are skipped.
"""

from __future__ import annotations

import mmap
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from refsam_trt import limits
from refsam_trt.errors import BundleError
from refsam_trt.onnx_file.tensors import (
    Dims,
    ExternalData,
    OnnxTensor,
    dtype_name,
    read_border_tensor,
    read_dims,
    read_external_data,
    read_name_and_dtype,
)
from refsam_trt.onnx_file.types import OnnxNode, types_of
from refsam_trt.onnx_file.wire import Field, Span, WireError, WireReader

DEFAULT_DOMAIN = ""
_DEFAULT_DOMAIN_ALIAS = "ai.onnx"
# Attributes of `Constant` that hold the value itself.
_DECLARED = {
    "value_float": "float32",
    "value_floats": "float32",
    "value_int": "int64",
    "value_ints": "int64",
}


@dataclass(frozen=True)
class OnnxSummary:
    """An .onnx file in short; nodes, domains and external data include subgraphs and functions.

    `opsets` gives the version per imported domain, `node_types` counts nodes by operator type
    (`domain:type` outside the default domain), `domains` are all that are imported, defined or
    used. The default domain is written as the empty string. `nodes` are all nodes, `dtypes` the
    element type that each computes in (`onnx_types.UNKNOWN` where none is known), and `dims` the
    shapes that the file tells: of inputs, outputs, weights and what lies between.
    """

    ir_version: int
    opsets: dict[str, int]
    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]
    node_types: Counter[str]
    domains: frozenset[str]
    external_data: tuple[ExternalData, ...]
    nodes: tuple[OnnxNode, ...]
    dtypes: tuple[str, ...]
    dims: dict[str, Dims]

    @property
    def typed_nodes(self) -> Counter[tuple[str, str]]:
        """How many nodes there are of each operator type and element type."""
        types = (node.op_type for node in self.nodes)
        return Counter(zip(types, self.dtypes, strict=True))


def summarise_onnx(path: Path) -> OnnxSummary:
    """Read an .onnx file.

    Time is bounded by `limits.MAX_ONNX_FIELDS` (some seconds), memory by the size of the result.

    Raises:
        BundleError: the file cannot be read, is not an ONNX model, or exceeds a limit.
    """
    try:
        return _summarise(path)
    except WireError as error:
        raise BundleError(
            f"{path}: not an ONNX model that can be read ({error}); copy the bundle again, or "
            "export it anew with refsam-export"
        ) from error
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path}: cannot be read ({error}); check path and permissions"
        ) from error


def summarise_graph(onnx_path: Path) -> dict[str, int]:
    """Return how many nodes of each operator type an .onnx file has, sorted by type.

    This is `node_types` of a manifest's graph entry.

    Raises:
        BundleError: as `summarise_onnx`.
    """
    return dict(sorted(summarise_onnx(onnx_path).node_types.items()))


def _summarise(path: Path) -> OnnxSummary:
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise WireError("it is no regular file")
    if not 0 < info.st_size <= limits.MAX_ONNX_BYTES:
        raise WireError(f"{info.st_size} bytes; 1 to {limits.MAX_ONNX_BYTES} expected")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Walker(data).summary()


class _Attribute(NamedTuple):
    """`declared` is the element type that it gives its node's outputs, empty for none."""

    name: str
    number: int
    declared: str
    equation: str


class _Walker:
    """One walk over one model; collects while it descends, each occurrence of a field once more.

    A message field that comes twice is read twice: protobuf merges such messages, and the parts of
    a merged message are those of both.
    """

    def __init__(self, data: mmap.mmap) -> None:
        self._wire = WireReader(
            data,
            max_fields=limits.MAX_ONNX_FIELDS,
            max_string_bytes=limits.MAX_ONNX_STRING_BYTES,
        )
        self._ir_version = 0
        self._has_graph = False
        self._opsets: dict[str, int] = {}
        self._inputs: list[OnnxTensor] = []
        self._outputs: list[OnnxTensor] = []
        self._node_types: Counter[str] = Counter()
        self._domains: set[str] = set()
        self._external: list[ExternalData] = []
        self._nodes: list[OnnxNode] = []
        self._known: dict[str, str] = {}
        self._dims: dict[str, Dims] = {}
        self._num_name_bytes = 0

    def summary(self) -> OnnxSummary:
        self._model(self._wire.root())
        if not self._has_graph or not self._opsets:
            raise WireError("it holds no graph, or names no operator set")
        return OnnxSummary(
            self._ir_version,
            self._opsets,
            tuple(self._inputs),
            tuple(self._outputs),
            self._node_types,
            frozenset(self._domains),
            tuple(self._external),
            tuple(self._nodes),
            tuple(types_of(self._nodes, {t.name: t.dtype for t in self._inputs} | self._known)),
            self._dims,
        )

    def _model(self, span: Span) -> None:
        for field in self._wire.fields(span):
            match field.number:
                case 1:
                    self._ir_version = self._wire.integer(field)
                case 7:
                    self._has_graph = True
                    self._graph(self._wire.message(field), depth=0)
                case 8:
                    domain, version = self._opset(self._wire.message(field))
                    self._opsets[domain] = version
                case 20:
                    self._training(self._wire.message(field))
                case 25:
                    self._function(self._wire.message(field))

    def _training(self, span: Span) -> None:
        for field in self._wire.fields(span):
            if field.number in (1, 2):
                self._graph(self._wire.message(field), depth=1)

    def _function(self, span: Span) -> None:
        domain = DEFAULT_DOMAIN
        for field in self._wire.fields(span):
            match field.number:
                case 7:
                    self._node(self._wire.message(field), depth=1)
                case 9:
                    self._opset(self._wire.message(field))
                case 10:
                    domain = self._wire.text(field)
                case 11:
                    self._attribute(self._wire.message(field), depth=1)
        self._add_domain(domain)

    def _opset(self, span: Span) -> tuple[str, int]:
        domain, version = DEFAULT_DOMAIN, 0
        for field in self._wire.fields(span):
            match field.number:
                case 1:
                    domain = self._wire.text(field)
                case 2:
                    version = self._wire.integer(field)
        return self._add_domain(domain), version

    def _graph(self, span: Span, depth: int) -> None:
        if depth > limits.MAX_ONNX_DEPTH:
            raise WireError(f"subgraphs nested more than {limits.MAX_ONNX_DEPTH} deep")
        for field in self._wire.fields(span):
            match field.number:
                case 1:
                    self._node(self._wire.message(field), depth)
                case 5:
                    self._initializer(self._wire.message(field), depth)
                case 11 if depth == 0:
                    self._border(self._inputs, self._wire.message(field))
                case 12 if depth == 0:
                    self._border(self._outputs, self._wire.message(field))
                case 13 if depth == 0:
                    self._inside(self._wire.message(field))
                case 15:
                    self._sparse(self._wire.message(field))

    def _border(self, tensors: list[OnnxTensor], span: Span) -> None:
        tensor = self._told(span)
        tensors.append(tensor)
        if tensor.dims is not None:
            self._dims[tensor.name] = tensor.dims
        if len(tensors) > limits.MAX_ONNX_TENSORS:
            raise WireError(f"more than {limits.MAX_ONNX_TENSORS} inputs or outputs")

    def _inside(self, span: Span) -> None:
        tensor = self._told(span)
        if tensor.dims is not None:
            self._dims.setdefault(tensor.name, tensor.dims)

    def _told(self, span: Span) -> OnnxTensor:
        """Read what the file tells of a tensor; its text counts among the names."""
        tensor = read_border_tensor(self._wire, span)
        for text in (tensor.name, *(tensor.dims or ())):
            if isinstance(text, str):
                self._name(text)
        return tensor

    def _node(self, span: Span, depth: int) -> None:
        op_type, domain, declared = "", DEFAULT_DOMAIN, ""
        equation, is_transposed = "", False
        names: tuple[list[str], list[str]] = ([], [])
        for field in self._wire.fields(span):
            match field.number:
                case 1 | 2:
                    names[field.number - 1].append(self._name(self._wire.text(field)))
                case 4:
                    op_type = self._wire.text(field)
                case 5:
                    found = self._attribute(self._wire.message(field), depth)
                    declared = found.declared or declared
                    equation = found.equation or equation
                    is_transposed = is_transposed or (found.name == "transA" and found.number == 1)
                case 7:
                    domain = self._wire.text(field)
        domain = self._add_domain(domain)
        op_type = f"{domain}:{op_type}" if domain else op_type
        self._node_types[op_type] += 1
        if len(self._node_types) > limits.MAX_ONNX_OPERATORS:
            raise WireError(f"more than {limits.MAX_ONNX_OPERATORS} different operator types")
        self._nodes.append(
            OnnxNode(op_type, tuple(names[0]), tuple(names[1]), declared, equation, is_transposed)
        )
        if len(self._nodes) > limits.MAX_ONNX_NODES:
            raise WireError(f"more than {limits.MAX_ONNX_NODES} nodes")

    def _attribute(self, span: Span, depth: int) -> _Attribute:
        """Walk an attribute; return what of it matters here."""
        name, number, dtype, text = "", 0, "", None
        for field in self._wire.fields(span):
            match field.number:
                case 1:
                    name = self._wire.text(field)
                case 3:
                    number = self._wire.integer(field)
                case 4:
                    text = field
                case 5 | 10:
                    _, dtype = self._tensor(self._wire.message(field))
                case 6 | 11:
                    self._graph(self._wire.message(field), depth + 1)
                case 22 | 23:
                    self._sparse(self._wire.message(field))
        declared = {"to": dtype_name(number), "value": dtype}.get(name, _DECLARED.get(name, ""))
        equation = self._equation(text) if name == "equation" else ""
        return _Attribute(name, number, declared, equation)

    def _equation(self, text: Field | None) -> str:
        return "" if text is None else self._name(self._wire.text(text))

    def _sparse(self, span: Span) -> None:
        for field in self._wire.fields(span):
            if field.number in (1, 2):
                self._tensor(self._wire.message(field))

    def _initializer(self, span: Span, depth: int) -> None:
        name, dtype = self._tensor(span)
        self._known[self._name(name)] = dtype
        if depth == 0:
            self._dims[name] = read_dims(self._wire, span)

    def _name(self, name: str) -> str:
        self._num_name_bytes += len(name)
        if self._num_name_bytes > limits.MAX_ONNX_NAME_BYTES:
            raise WireError(f"more than {limits.MAX_ONNX_NAME_BYTES} bytes of tensor names")
        return name

    def _tensor(self, span: Span) -> tuple[str, str]:
        """Note where a tensor's bytes lie; return its name and element type."""
        external = read_external_data(self._wire, span)
        if external is not None:
            self._external.append(external)
        if len(self._external) > limits.MAX_EXTERNAL_TENSORS:
            raise WireError(f"more than {limits.MAX_EXTERNAL_TENSORS} external tensors")
        return read_name_and_dtype(self._wire, span)

    def _add_domain(self, domain: str) -> str:
        domain = DEFAULT_DOMAIN if domain == _DEFAULT_DOMAIN_ALIAS else domain
        self._domains.add(domain)
        if len(self._domains) > limits.MAX_ONNX_OPERATORS:
            raise WireError(f"more than {limits.MAX_ONNX_OPERATORS} operator domains")
        return domain
