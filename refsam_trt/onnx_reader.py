"""What an .onnx file says of itself, read without the onnx package and without trusting it.

Reads what a bundle is checked for: versions, tensors at the border, operators and where external
data lies, and in which element types the nodes compute. Weights are skipped, shapes inside the
graph are not checked.
"""

from __future__ import annotations

import mmap
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from refsam_trt import limits
from refsam_trt.errors import BundleError
from refsam_trt.onnx_tensors import (
    ExternalData,
    OnnxTensor,
    dtype_name,
    read_border_tensor,
    read_external_data,
    read_name_and_dtype,
)
from refsam_trt.onnx_types import OnnxNode, count_types
from refsam_trt.protobuf_wire import Span, WireError, WireReader

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
    used. The default domain is written as the empty string. `typed_nodes` counts nodes by operator
    type and by the element type of their first output (`onnx_types.UNKNOWN` where none is known).
    """

    ir_version: int
    opsets: dict[str, int]
    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]
    node_types: Counter[str]
    domains: frozenset[str]
    external_data: tuple[ExternalData, ...]
    typed_nodes: Counter[tuple[str, str]]


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
            count_types(self._nodes, {t.name: t.dtype for t in self._inputs} | self._known),
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
                    self._initializer(self._wire.message(field))
                case 11 if depth == 0:
                    self._border(self._inputs, self._wire.message(field))
                case 12 if depth == 0:
                    self._border(self._outputs, self._wire.message(field))
                case 15:
                    self._sparse(self._wire.message(field))

    def _border(self, tensors: list[OnnxTensor], span: Span) -> None:
        tensors.append(read_border_tensor(self._wire, span))
        if len(tensors) > limits.MAX_ONNX_TENSORS:
            raise WireError(f"more than {limits.MAX_ONNX_TENSORS} inputs or outputs")

    def _node(self, span: Span, depth: int) -> None:
        op_type, domain, declared = "", DEFAULT_DOMAIN, ""
        names: tuple[list[str], list[str]] = ([], [])
        for field in self._wire.fields(span):
            match field.number:
                case 1 | 2:
                    names[field.number - 1].append(self._name(self._wire.text(field)))
                case 4:
                    op_type = self._wire.text(field)
                case 5:
                    declared = self._attribute(self._wire.message(field), depth) or declared
                case 7:
                    domain = self._wire.text(field)
        domain = self._add_domain(domain)
        op_type = f"{domain}:{op_type}" if domain else op_type
        self._node_types[op_type] += 1
        if len(self._node_types) > limits.MAX_ONNX_OPERATORS:
            raise WireError(f"more than {limits.MAX_ONNX_OPERATORS} different operator types")
        self._nodes.append(OnnxNode(op_type, tuple(names[0]), tuple(names[1]), declared))
        if len(self._nodes) > limits.MAX_ONNX_NODES:
            raise WireError(f"more than {limits.MAX_ONNX_NODES} nodes")

    def _attribute(self, span: Span, depth: int) -> str:
        """Walk an attribute; return the element type that it declares of its node's outputs."""
        name, number, dtype = "", 0, ""
        for field in self._wire.fields(span):
            match field.number:
                case 1:
                    name = self._wire.text(field)
                case 3:
                    number = self._wire.integer(field)
                case 5 | 10:
                    _, dtype = self._tensor(self._wire.message(field))
                case 6 | 11:
                    self._graph(self._wire.message(field), depth + 1)
                case 22 | 23:
                    self._sparse(self._wire.message(field))
        if name == "to":
            return dtype_name(number)
        return dtype if name == "value" else _DECLARED.get(name, "")

    def _sparse(self, span: Span) -> None:
        for field in self._wire.fields(span):
            if field.number in (1, 2):
                self._tensor(self._wire.message(field))

    def _initializer(self, span: Span) -> None:
        name, dtype = self._tensor(span)
        self._known[self._name(name)] = dtype

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


__all__ = ["OnnxSummary", "summarise_graph", "summarise_onnx"]
