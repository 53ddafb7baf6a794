"""The types of a parsed network against what the bundle says, on stand-ins for TensorRT's."""

import re
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from onnx import TensorProto, helper

from refsam_engines.network import check_precision, check_tensors, count_types, stated_types
from refsam_trt.contract.specs import GraphSpec, TensorSpec
from refsam_trt.errors import PlanBuildError

PATH = Path("image_encoder.onnx")
SPEC = GraphSpec(
    (TensorSpec("image", "float32", ("M", 3), "frame"),),
    (TensorSpec("embedding", "float32", ("M", 8), "frame"),),
)


def named(name: str) -> SimpleNamespace:
    return SimpleNamespace(name=name)


def layer(kind: str, *dtypes: str) -> SimpleNamespace:
    outputs = [SimpleNamespace(dtype=named(dtype)) for dtype in dtypes]
    return SimpleNamespace(
        type=named(kind), num_outputs=len(outputs), get_output=outputs.__getitem__
    )


def network(inputs: dict[str, str], outputs: dict[str, str]) -> SimpleNamespace:
    ins = [SimpleNamespace(name=name, dtype=named(dtype)) for name, dtype in inputs.items()]
    outs = [SimpleNamespace(name=name, dtype=named(dtype)) for name, dtype in outputs.items()]
    return SimpleNamespace(
        num_inputs=len(ins),
        get_input=ins.__getitem__,
        num_outputs=len(outs),
        get_output=outs.__getitem__,
    )


def test_layers_are_counted_by_type_and_output():
    layers = [layer("SOFTMAX", "FLOAT"), layer("CONVOLUTION", "HALF"), layer("ASSERTION")]
    layers.append(layer("CONVOLUTION", "FLOAT"))
    counts = count_types(SimpleNamespace(num_layers=4, get_layer=layers.__getitem__))
    assert counts == {"CONVOLUTION": {"FLOAT": 1, "HALF": 1}, "SOFTMAX": {"FLOAT": 1}}


def test_other_tensors_than_the_manifests_are_refused():
    check_tensors(PATH, network({"image": "FLOAT"}, {"embedding": "FLOAT"}), SPEC)
    expected = (
        "image_encoder.onnx: TensorRT parsed outputs {'embedding': 'HALF'}, the bundle's manifest "
        "says {'embedding': 'FLOAT'}; export the bundle anew with refsam-export"
    )
    with pytest.raises(PlanBuildError, match=f"^{re.escape(expected)}$"):
        check_tensors(PATH, network({"image": "FLOAT"}, {"embedding": "HALF"}), SPEC)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", "HALF"), ("fp32", "BF16"), ("fp16", "BF16"), ("bf16", "HALF")]
)
def test_types_that_a_precision_does_not_allow_are_refused(precision: str, dtype: str):
    expected = (
        f"image_encoder.onnx: the graph computes in {dtype}, but states "
        f"{precision}; export the bundle anew with refsam-export"
    )
    with pytest.raises(PlanBuildError, match=f"^{re.escape(expected)}$"):
        check_precision(PATH, precision, {"ELEMENTWISE": {dtype: 1, "INT64": 2}}, {})


def test_weights_may_be_stored_in_fp16():
    check_precision(PATH, "fp32", {"CONSTANT": {"HALF": 9}, "CAST": {"FLOAT": 9}}, {})


def test_an_fp16_variant_that_computes_in_fp32_is_refused():
    stated = {"MatMul": {"float16": 3}, "Gemm": {"float16": 1, "float32": 1}, "Add": {"float16": 9}}
    check_precision(PATH, "fp16", {"MATRIX_MULTIPLY": {"FLOAT": 1, "HALF": 4}}, stated)
    expected = (
        "image_encoder.onnx: TensorRT parsed MATRIX_MULTIPLY layers of types {'FLOAT': 5}, the "
        "graph has {'HALF': 4, 'FLOAT': 1}: the plan would not be fp16 as the graph is; use "
        "another version of TensorRT, or export the bundle anew with refsam-export"
    )
    with pytest.raises(PlanBuildError, match=f"^{re.escape(expected)}$"):
        check_precision(PATH, "fp16", {"MATRIX_MULTIPLY": {"FLOAT": 5}}, stated)


def test_nodes_are_counted_by_operator_and_type(tmp_path: Path):
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "h"], ["a"]),
        helper.make_node("MatMul", ["x", "x"], ["b"]),
        helper.make_node("MatMul", ["a", "a"], ["c"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    outputs = [helper.make_tensor_value_info("b", TensorProto.FLOAT, [2, 2])]
    graph = helper.make_graph(nodes, "g", [x], outputs)
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "g.onnx")
    assert stated_types(tmp_path / "g.onnx") == {
        "Cast": {"float16": 1},
        "MatMul": {"float16": 2, "float32": 1},
    }


def test_a_convolution_that_the_graph_does_not_have_is_refused():
    with pytest.raises(PlanBuildError, match="parsed CONVOLUTION layers of types"):
        check_precision(PATH, "fp16", {"CONVOLUTION": {"HALF": 1}}, {})
