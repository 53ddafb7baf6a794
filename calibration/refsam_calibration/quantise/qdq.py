"""Q/DQ nodes around chosen matrix products of an ONNX graph: what makes it a quantised graph.

    input -> QuantizeLinear -> DequantizeLinear -> MatMul -> Add bias
    weight (stored in 8 bits) -> DequantizeLinear ----^

One scale per input tensor, one per output channel of a weight, zero points 0: the form that
TensorRT 10 and 11, TensorRT-RTX and ONNX Runtime all turn into 8-bit kernels. Scales and everything
else have the types of the graph, which stays fp32 or fp16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir
import torch
from torch import Tensor

from refsam_calibration.quantise.schemes import Scheme, scale_of
from refsam_export.onnx.export import module_of
from refsam_trt.errors import InternalError

_CODES = {
    "int8": (onnx_ir.DataType.INT8, torch.int8, 127.0),
    "fp8": (onnx_ir.DataType.FLOAT8E4M3FN, torch.float8_e4m3fn, 448.0),
}
_BIAS_DIMS = 3


@dataclass(frozen=True)
class QuantisedLinear:
    """One linear layer to quantise.

    Attributes:
        amax: largest magnitude of its input that is to be held.
        weight: float32 [out, in].
    """

    amax: float
    weight: Tensor


def insert_qdq(model: Any, layers: Mapping[str, QuantisedLinear], scheme: Scheme) -> None:
    """Quantise the products of some linear layers.

    Args:
        model: `onnx_ir.Model` as `export_graph` hands it to its `edit`; changed in place.
        layers: by the path of the module that each product is from.
        scheme: which 8 bits.

    Raises:
        InternalError: the graph has not exactly one product of some layer, or one with another
            weight.
    """
    products: dict[str, list[Any]] = {name: [] for name in layers}
    for node in model.graph:
        if node.op_type in ("MatMul", "Gemm") and module_of(node) in products:
            products[module_of(node)].append(node)
    graph = _Quantiser(model.graph, scheme)
    for name, layer in layers.items():
        nodes = products[name]
        if [node.op_type for node in nodes] != ["MatMul"]:
            raise InternalError(
                f"{name}: the exported graph has {[node.op_type for node in nodes]} for this "
                "layer, one MatMul expected"
            )
        _check_weight(name, nodes[0], layer.weight)
        graph.quantise(name, nodes[0], layer)
    graph.remove_unused()


class _Quantiser:
    """Rewrites products, each with Q/DQ nodes of its own.

    Two products of one input share none: ONNX Runtime (1.31) leaves products whose quantised input
    has another reader in fp32.
    """

    def __init__(self, graph: Any, scheme: Scheme) -> None:
        self._graph, self._scheme = graph, scheme
        self._type, self._dtype, self._largest = _CODES[scheme]
        self._replaced: list[Any] = []

    def quantise(self, name: str, product: Any, layer: QuantisedLinear) -> None:
        values, weight = product.inputs
        self._spread_bias(name, product)
        product.replace_input_with(0, self._quantised_input(name, product, values, layer.amax))
        product.replace_input_with(1, self._quantised_weight(name, product, weight, layer.weight))
        self._replaced.append(weight)

    def remove_unused(self) -> None:
        """Drop the weights that nothing reads any more."""
        for value in self._replaced:
            if not value.uses() and value.name in self._graph.initializers:
                del self._graph.initializers[value.name]

    def _quantised_input(self, name: str, product: Any, values: Any, amax: float) -> Any:
        scale = self._scale(f"{name}.input_scale", torch.tensor(amax), values.dtype)
        zero = self._constant(f"{name}.input_zero", torch.zeros((), dtype=self._dtype))
        quantise = onnx_ir.node("QuantizeLinear", [values, scale, zero], name=f"{name}.quantise")
        stored = quantise.outputs[0]
        stored.name, stored.shape = f"{name}.input_quantised", values.shape
        stored.type = onnx_ir.TensorType(self._type)
        dequantise = self._dequantise(f"{name}.input", [stored, scale, zero], values, {})
        self._graph.insert_before(product, [quantise, dequantise])
        return dequantise.outputs[0]

    def _quantised_weight(self, name: str, product: Any, old: Any, weight: Tensor) -> Any:
        scale = self._scale(f"{name}.weight_scale", weight.abs().amax(dim=1), old.dtype)
        factors = torch.from_numpy(scale.const_value.numpy().astype(np.float32))
        codes = weight / factors[:, None]
        if self._scheme == "int8":
            codes = codes.round()
        codes = codes.clamp(-self._largest, self._largest).to(self._dtype)
        stored = self._constant(f"{name}.weight_quantised", codes.T.contiguous())
        zero = self._constant(
            f"{name}.weight_zero", torch.zeros(len(codes), dtype=torch.int8).to(self._dtype)
        )
        node = self._dequantise(f"{name}.weight", [stored, scale, zero], old, {"axis": 1})
        self._graph.insert_before(product, node)
        return node.outputs[0]

    def _dequantise(self, name: str, inputs: list[Any], like: Any, attributes: Any) -> Any:
        node = onnx_ir.node(
            "DequantizeLinear", inputs, attributes=attributes, name=f"{name}.dequantise"
        )
        output = node.outputs[0]
        output.name, output.shape, output.type = f"{name}_dequantised", like.shape, like.type
        return node

    def _scale(self, name: str, amax: Tensor, dtype: Any) -> Any:
        """Return the constant scale of `amax`, rounded up where fp16 does not hold it.

        Up, so that nothing is clipped; the codes are made with the scale as it is stored.
        """
        exact = scale_of(amax.float(), self._scheme)
        scale = exact
        if dtype == onnx_ir.DataType.FLOAT16:
            half = exact.half()
            above = torch.nextafter(half, torch.full_like(half, torch.inf))
            scale = torch.where(half.float() < exact, above, half)
        elif dtype != onnx_ir.DataType.FLOAT:
            raise InternalError(f"{name}: the graph computes in {dtype}; fp32 or fp16 expected")
        return self._constant(name, scale)

    def _spread_bias(self, name: str, product: Any) -> None:
        """Give the bias after a product three dims, [1, 1, out], which changes no value.

        ONNX Runtime (1.31) fuses a product and the addition of a vector to Gemm before it looks for
        Q/DQ, and a float bias keeps that Gemm from being an integer one. Three dims are no vector.
        """
        ((add, _),) = product.outputs[0].uses()
        biases = [value for value in add.inputs if value is not product.outputs[0]]
        if add.op_type != "Add" or len(biases) != 1 or biases[0].const_value is None:
            raise InternalError(f"{name}: {add.op_type} after the product, one bias expected")
        bias = biases[0].const_value.numpy()
        spread = onnx_ir.Tensor(bias.reshape(*[1] * (_BIAS_DIMS - 1), -1), name=f"{name}.bias_row")
        value = self._initializer(spread)
        self._replaced.append(biases[0])
        add.replace_input_with(list(add.inputs).index(biases[0]), value)

    def _constant(self, name: str, tensor: Tensor) -> Any:
        if tensor.dtype == torch.float8_e4m3fn:
            array = tensor.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
        else:
            array = tensor.numpy()
        return self._initializer(onnx_ir.Tensor(array, name=name))

    def _initializer(self, tensor: Any) -> Any:
        value = onnx_ir.Value(
            name=tensor.name,
            type=onnx_ir.TensorType(tensor.dtype),
            shape=tensor.shape,
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value


def _check_weight(name: str, product: Any, weight: Tensor) -> None:
    stored = product.inputs[1].const_value
    held = None if stored is None else torch.from_numpy(stored.numpy().astype(np.float32)).T
    # Of an fp16 graph, it is rounded.
    if held is None or held.shape != weight.shape or not torch.allclose(held, weight, 1e-3, 1e-6):
        raise InternalError(f"{name}: the product of the exported graph has another weight")
