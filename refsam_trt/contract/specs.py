"""What a family declares about its graphs: tensors with dtype, dims and scope.

Declared once per family and read by exporter, engine builder and runtime alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from refsam_trt.errors import BundleError, InternalError

EXPORT_AGAIN = "export the bundle anew with refsam-export"

Dim = int | str
Scope = Literal["static", "expression", "frame", "pair", "video"]
DType = Literal["float32", "float16", "bfloat16", "int64", "bool"]


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One graph tensor. A dim is a size, a symbol (`"B"`) or a symbol plus a constant (`"N+1"`).

    Symbols: M frames, B expressions, N text tokens. `scope` says how often the values change
    (architecture: compute each thing once, at the rate at which it changes).
    """

    name: str
    dtype: DType
    dims: tuple[Dim, ...]
    scope: Scope

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape that sizes of the symbols make."""
        return tuple(dim if isinstance(dim, int) else _size(dim, sizes) for dim in self.dims)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Symbols in dims order, each once."""
        symbols = (dim.partition("+")[0] for dim in self.dims if isinstance(dim, str))
        return tuple(dict.fromkeys(symbols))


class GraphSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Inputs and outputs of one graph, in the order of its ONNX file."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def output(self, name: str) -> TensorSpec:
        """Return the output of that name."""
        for spec in self.outputs:
            if spec.name == name:
                return spec
        raise InternalError(f"no output named {name!r}")


def _size(dim: str, sizes: Mapping[str, int]) -> int:
    symbol, _, offset = dim.partition("+")
    if symbol not in sizes:
        raise InternalError(f"no size given for dim {dim!r}; known: {sorted(sizes)}")
    return sizes[symbol] + int(offset or 0)


def check_tensors(
    where: str, tensors: tuple[TensorSpec, ...], expected: tuple[TensorSpec, ...]
) -> None:
    """Check the tensors of one graph against those of the contract, in order.

    Raises:
        BundleError: begins with `where`.
    """
    for tensor, needed in zip(tensors, expected, strict=False):
        if tensor != needed:
            raise BundleError(
                f"{where} {_shown(tensor)}, expected {_shown(needed)}; {EXPORT_AGAIN}"
            )
    if len(tensors) != len(expected):
        raise BundleError(
            f"{where}s: {len(tensors)} tensors, expected {len(expected)} "
            f"({', '.join(tensor.name for tensor in expected)}); {EXPORT_AGAIN}"
        )


def _shown(tensor: TensorSpec) -> str:
    return f"{tensor.name} {tensor.dtype} {list(tensor.dims)} (scope {tensor.scope})"
