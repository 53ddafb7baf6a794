"""Weights stored in fp16: fewer bytes, the very same outputs."""

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, checker, helper, numpy_helper

from refsam_export.onnx.weight_storage import check_exact_fp16, store_exact_fp16
from refsam_trt.errors import CheckpointError


def model_with(weight: np.ndarray, bias: np.ndarray) -> onnx_ir.Model:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 64])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["q"]),
        helper.make_node("MatMul", ["q", "w"], ["y"]),
    ]
    initialisers = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph(nodes, "g", [x], [y], initialisers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx_ir.from_proto(proto)


def run(model: onnx_ir.Model, x: np.ndarray) -> np.ndarray:
    proto = onnx_ir.to_proto(model)
    checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


@pytest.fixture
def exact() -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(64, 64))
    return noise.astype(np.float16).astype(np.float32)


def test_outputs_are_bit_identical_and_half_the_bytes_are_gone(exact: np.ndarray):
    bias = np.zeros(64, np.float32)
    x = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    expected = run(model_with(exact, bias), x)
    stored = model_with(exact, bias)
    store_exact_fp16(stored)
    np.testing.assert_array_equal(run(stored, x), expected)
    kinds = {v.name: v.const_value.dtype for v in stored.graph.initializers.values()}
    assert kinds == {"w.fp16": onnx_ir.DataType.FLOAT16, "b": onnx_ir.DataType.FLOAT}
    assert stored.graph.initializers["w.fp16"].const_value.nbytes == exact.nbytes // 2


@pytest.mark.parametrize("value", [1 + 2**-12, 1e5, 1e-9], ids=["precise", "large", "tiny"])
def test_what_fp16_cannot_hold_stays(exact: np.ndarray, value: float):
    exact[3, 5] = value
    stored = model_with(exact, np.zeros(64, np.float32))
    store_exact_fp16(stored)
    assert set(stored.graph.initializers) == {"w", "b"}


def test_weights_that_would_change_are_refused(exact: np.ndarray):
    tensors = {"a": torch.from_numpy(exact), "b": torch.tensor([1 + 2**-12]), "c": torch.ones(2)}
    with pytest.raises(CheckpointError) as caught:
        check_exact_fp16(tensors)
    assert str(caught.value) == (
        "b holds values that fp16 cannot hold exactly (1 of 3 tensors do), and --weight-storage "
        "fp16 never rounds; round them first (`refsam-train publish` writes such weights), or use "
        "--weight-storage fp32"
    )
    del tensors["b"]
    check_exact_fp16(tensors)


def test_a_trained_module_rounded_to_fp16_is_stored_whole():
    layer = torch.nn.Linear(64, 64)
    rounded = layer.weight.detach().half().float().numpy()
    stored = model_with(rounded, np.zeros(64, np.float32))
    store_exact_fp16(stored)
    assert set(stored.graph.initializers) == {"w.fp16", "b"}
