"""Element types inside graphs, against ONNX's own inference; what a stated precision allows."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser, shape_inference

from refsam_trt import limits
from refsam_trt.contract.precision import count_dtypes, precision_problem
from refsam_trt.errors import BundleError
from refsam_trt.onnx_file.reader import summarise_onnx
from refsam_trt.onnx_file.types import UNKNOWN

# Every rule of `onnx_types`: types declared, fixed, of another input than the first, of the first.
MIXED = """<ir_version: 10, opset_import: ["" : 20]>
g (float[N, 4] x, int64[N] ids, bool[N, 4] mask) => (float16[N, 4] y)
{
    half = Cast <to = 10> (x)
    product = MatMul (half, w)
    shape = Shape (x)
    ones = ConstantOfShape <value = float[1] {1.0}> (shape)
    zeros = ConstantOfShape (shape)
    k = Constant <value = float[1] {2.0}> ()
    f = Constant <value_float = 2.0> ()
    i = Constant <value_ints = [1, 2]> ()
    is_large = Greater (product, ones)
    chosen = Where (is_large, product, ones)
    best = ArgMax <axis = 1> (chosen)
    depth = Constant <value_int = 4> ()
    pair = Constant <value = float[2] {0.0, 1.0}> ()
    one_hot = OneHot (ids, depth, pair)
    like = CastLike (x, b)
    small = QuantizeLinear (x, s, zero)
    large = DequantizeLinear (small, s, zero)
    two = Constant <value_ints = [2]> ()
    values, places = TopK (product, two)
    moved = Add (places, places)
    wide = Cast <to = 1> (values)
    twice = Add (wide, wide)
    left, right = Split <axis = 1, num_outputs = 2> (product)
    y = Concat <axis = 1> (left, right)
}"""


HALVED = ("ones", "k", "pair")
WEIGHTS = (
    ("w", TensorProto.FLOAT16, [4, 4]),
    ("s", TensorProto.FLOAT, []),
    ("zero", TensorProto.INT8, []),
    ("b", TensorProto.BFLOAT16, [4]),
)


def mixed() -> onnx.ModelProto:
    """`MIXED` with what its text form cannot hold: weights, and constants in fp16."""
    model = parser.parse_model(MIXED)
    for name, kind, dims in WEIGHTS:
        model.graph.initializer.append(helper.make_tensor(name, kind, dims, [1] * math.prod(dims)))
    for node in model.graph.node:
        if node.output[0] in HALVED:
            value = numpy_helper.to_array(node.attribute[0].t).astype(np.float16)
            node.attribute[0].t.CopyFrom(numpy_helper.from_array(value))
    return model


def saved(tmp_path: Path, model: onnx.ModelProto) -> Path:
    path = tmp_path / "graph.onnx"
    onnx.save_model(model, path)
    return path


def test_types_are_those_that_onnx_infers(tmp_path: Path):
    model = mixed()
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
    expected = Counter(
        (node.op_type, helper.tensor_dtype_to_np_dtype(types[node.output[0]]).name)
        for node in graph.node
    )
    assert summarise_onnx(saved(tmp_path, model)).typed_nodes == expected
    assert expected["Add", "int64"] == expected["Add", "float32"] == 1
    assert {dtype for _, dtype in expected} >= {"float16", "bfloat16", "int8", "bool"}


def test_what_nothing_tells_is_unknown(tmp_path: Path):
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (bool c, float[4] x) => (float[4] y)
    {
        y = If (c) <
            then_branch = a () => (float[4] p) { p = Relu (x) },
            else_branch = b () => (float[4] q) { q = Neg (x) }
        >
        z = Add (y, y)
        v = Relu (nowhere)
    }"""
    found = summarise_onnx(saved(tmp_path, parser.parse_model(text))).typed_nodes
    assert found == {
        ("Relu", "float32"): 1,
        ("Neg", "float32"): 1,
        ("If", UNKNOWN): 1,
        ("Add", UNKNOWN): 1,
        ("Relu", UNKNOWN): 1,
    }
    assert count_dtypes(found) == {"float32": 2, "unknown": 3}


@pytest.mark.parametrize(
    ("precision", "nodes", "problem"),
    [
        ("fp32", {("MatMul", "float32"): 3, ("Shape", "int64"): 1}, None),
        ("fp32", {("Cast", "float16"): 1}, "1 nodes of type Cast compute in float16"),
        ("fp32", {("Add", "float64"): 2}, "2 nodes of type Add compute in float64"),
        ("fp16", {("MatMul", "float16"): 3, ("Softmax", "float32"): 1}, None),
        (
            "fp16",
            {("MatMul", "float16"): 3, ("Conv", "float32"): 1},
            "1 nodes of type Conv compute in float32, not in float16",
        ),
        ("fp16", {("Add", "bfloat16"): 1}, "1 nodes of type Add compute in bfloat16"),
        ("fp16", {("Add", "float32"): 9}, "no node computes in float16"),
        (
            "fp16",
            {("MatMul", UNKNOWN): 1},
            "1 nodes of type MatMul compute in a type that cannot be told, not in float16",
        ),
        ("bf16", {("Gemm", "bfloat16"): 1, ("Conv", "float32"): 1}, None),
        (
            "bf16",
            {("Gemm", "float32"): 1, ("Relu", "bfloat16"): 1},
            "1 nodes of type Gemm compute in float32, not in bfloat16",
        ),
        (
            "bf16",
            {("MatMul", "bfloat16"): 1, ("Einsum", "bfloat16"): 1},
            "1 nodes of type Einsum compute in bfloat16, not in float32",
        ),
        ("int8-fp32", {("MatMul", "int8"): 1, ("MatMul", "float32"): 1}, None),
        ("int8-fp16", {("MatMul", "int8"): 1, ("Conv", "float16"): 1}, None),
        ("fp8-fp16", {("MatMul", "float8_e4m3fn"): 1, ("Add", "float16"): 1}, None),
        ("int8-fp32", {("MatMul", "float32"): 1}, "no matrix product computes in int8"),
        (
            "int8-fp16",
            {("MatMul", "int8"): 1, ("MatMul", "float32"): 2},
            "2 nodes of type MatMul compute in float32, not in float16",
        ),
        (
            "int8-fp32",
            {("MatMul", "int8"): 1, ("Conv", "int8"): 1},
            "1 nodes of type Conv compute in int8, not in float32",
        ),
        (
            "int8-fp32",
            {("QuantizeLinear", "uint8"): 4},
            "4 nodes of type QuantizeLinear round to uint8",
        ),
        ("fp32", {("QuantizeLinear", "int8"): 4}, "4 nodes of type QuantizeLinear round to int8"),
        ("fp16", {("MatMul", "int8"): 2}, "2 nodes of type MatMul compute in int8, not in float16"),
    ],
)
def test_what_a_precision_allows(precision: str, nodes: dict, problem: str | None):
    assert precision_problem(precision, nodes) == problem


def test_products_of_two_dequantised_tensors_compute_in_their_type(tmp_path: Path):
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[4, 4] x, int8[4, 4] w, int16[4, 4] v, float s, int8 z) => (float[4, 4] y)
    {
        q = QuantizeLinear (x, s, z)
        x8 = DequantizeLinear (q, s, z)
        w8 = DequantizeLinear (w, s, z)
        v16 = DequantizeLinear (v, s)
        both = MatMul (x8, w8)
        one = MatMul (x, w8)
        other = MatMul (x8, x)
        mixed = MatMul (x8, v16)
        added = Add (x8, w8)
        later = MatMul (both, w8)
        y = Sum (both, one, other, mixed, added, later)
    }"""
    found = summarise_onnx(saved(tmp_path, parser.parse_model(text))).typed_nodes
    assert found == {
        ("QuantizeLinear", "int8"): 1,
        ("DequantizeLinear", "float32"): 3,
        ("MatMul", "int8"): 1,
        ("MatMul", "float32"): 4,
        ("Add", "float32"): 1,
        ("Sum", "float32"): 1,
    }


def test_endless_names_and_nodes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    nodes = [helper.make_node("Relu", [name], [chr(ord(name) + 1)]) for name in "xyz{|"]
    graph = helper.make_graph(nodes, "g", [x], [])
    path = saved(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    assert summarise_onnx(path).typed_nodes == {("Relu", "float32"): 5}
    monkeypatch.setattr(limits, "MAX_ONNX_NAME_CHARS", 9)
    with pytest.raises(BundleError, match="more than 9 characters of tensor names"):
        summarise_onnx(path)
    monkeypatch.undo()
    monkeypatch.setattr(limits, "MAX_ONNX_NODES", 4)
    with pytest.raises(BundleError, match="more than 4 nodes"):
        summarise_onnx(path)
