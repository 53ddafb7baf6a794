"""Floating-point operations counted by hand."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser, shape_inference

from refsam_export.onnx.flops import count_flops
from refsam_trt.bundle.open import open_bundle
from refsam_trt.bundle.shipped import MODELS
from refsam_trt.contract.specs import GraphSpec, TensorSpec
from refsam_trt.errors import BundleError
from refsam_trt.onnx_file.reader import summarise_onnx

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
g (float[M, 2, 8, 8] image) => (float[M, 6, 4] out)
<float[4, 2, 3, 3] conv_w = {%s}, float[4, 6, 2, 2] up_w = {%s}, float[4, 5] gemm_w = {%s}>
{
    c = Conv <strides = [4, 4]> (image, conv_w)
    half = Cast <to = 10> (c)
    cells = Constant <value_ints = [1, 4, 4]> ()
    flat = Reshape (half, cells)
    turned = Transpose <perm = [0, 2, 1]> (flat)
    scores = MatMul (turned, flat)
    soft = Softmax (scores)
    wide = Cast <to = 1> (soft)
    four = Constant <value_ints = [-1, 4]> ()
    rows = Reshape (wide, four)
    g = Gemm (rows, gemm_w)
    up = ConvTranspose <strides = [2, 2]> (c, up_w)
    e = Einsum <equation = "bqk,bdk->bqd"> (wide, wide)
    start = Constant <value_ints = [0, 0]> ()
    end = Constant <value_ints = [6, 1]> ()
    axes = Constant <value_ints = [1, 2]> ()
    cut = Slice (up, start, end, axes)
    out = Squeeze (cut, two)
}"""


@pytest.fixture
def graph(tmp_path: Path) -> tuple[Path, GraphSpec]:
    sizes = (4 * 2 * 3 * 3, 4 * 6 * 2 * 2, 4 * 5)
    model = parser.parse_model(TEXT % tuple(", ".join(["1"] * size) for size in sizes))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2]), "two"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    path = tmp_path / "graph.onnx"
    onnx.save_model(shape_inference.infer_shapes(model, strict_mode=True, data_prop=True), path)
    spec = GraphSpec(
        (TensorSpec("image", "float32", ("M", 2, 8, 8), "frame"),),
        (TensorSpec("out", "float32", ("M", 6, 4), "frame"),),
    )
    return path, spec


def counted(path: Path, spec: GraphSpec) -> dict[str, int]:
    return count_flops(path, summarise_onnx(path), spec)


def test_products_count_twice_their_terms_and_others_once_a_value(
    graph: tuple[Path, GraphSpec],
) -> None:
    conv = 2 * (4 * 2 * 2) * (2 * 3 * 3)
    up = 2 * (4 * 2 * 2) * (6 * 2 * 2)
    gemm, einsum = 2 * (4 * 5) * 4, 2 * 4 * 4 * 4
    matmul, softmax = 2 * (4 * 4) * 4, 4 * 4
    assert counted(*graph) == {
        "float16": matmul + softmax,
        "float32": conv + up + gemm + einsum,
    }


@pytest.mark.parametrize(
    ("dim", "size"), [("num_m", 1), ("4*num_n + 4", 68), ("N+1", 17), ("num_b*num_n", 16)]
)
def test_symbolic_sizes(graph: tuple[Path, GraphSpec], dim: str, size: int) -> None:
    path, spec = graph
    model = onnx.load(path)
    (soft,) = (value for value in model.graph.value_info if value.name == "soft")
    soft.type.tensor_type.shape.dim[1].dim_param = dim
    onnx.save_model(model, path)
    assert counted(path, spec)["float16"] == 2 * (4 * 4) * 4 + size * 4


@pytest.mark.parametrize("dim", ["unk__3", "num_n // 2", "", "-1"])
def test_an_unknown_shape_is_refused(graph: tuple[Path, GraphSpec], dim: str) -> None:
    path, spec = graph
    model = onnx.load(path)
    (soft,) = (value for value in model.graph.value_info if value.name == "soft")
    soft.type.tensor_type.shape.dim[1].dim_param = dim
    onnx.save_model(model, path)
    with pytest.raises(BundleError, match="no shape known of soft, at the Softmax node"):
        counted(path, spec)


@pytest.mark.parametrize("change", ["rank", "einsum", "rank of einsum"])
def test_shapes_that_an_operator_cannot_take_are_refused(
    graph: tuple[Path, GraphSpec], change: str
) -> None:
    path, spec = graph
    model = onnx.load(path)
    values = {value.name: value for value in model.graph.value_info}
    (einsum,) = (node for node in model.graph.node if node.op_type == "Einsum")
    if change == "rank":
        values["turned"].type.tensor_type.shape.ClearField("dim")
    elif change == "einsum":
        einsum.attribute[0].s = b"bqk->bqk"
    else:
        einsum.attribute[0].s = b"bqk,bd->bqd"
    onnx.save_model(model, path)
    node = "MatMul" if change == "rank" else "Einsum"
    with pytest.raises(BundleError, match=f"a {node} node of tensors whose shapes it cannot take"):
        counted(path, spec)


def test_a_transposed_gemm_sums_over_its_rows(graph: tuple[Path, GraphSpec]) -> None:
    path, spec = graph
    model = onnx.load(path)
    (gemm,) = (node for node in model.graph.node if node.op_type == "Gemm")
    before = counted(path, spec)["float32"]
    gemm.attribute.append(onnx.helper.make_attribute("transA", 0))
    onnx.save_model(model, path)
    assert counted(path, spec)["float32"] == before
    gemm.attribute[-1].i = 1
    values = {value.name: value for value in model.graph.value_info}
    values["rows"].type.tensor_type.shape.dim[0].dim_value = 7
    onnx.save_model(model, path)
    assert counted(path, spec)["float32"] == before + 2 * (4 * 5) * (7 - 4)


def test_a_negative_size_is_none(graph: tuple[Path, GraphSpec]) -> None:
    path, spec = graph
    model = onnx.load(path)
    (soft,) = (value for value in model.graph.value_info if value.name == "soft")
    soft.type.tensor_type.shape.dim[1].dim_value = -4
    onnx.save_model(model, path)
    with pytest.raises(BundleError, match="no shape known of soft"):
        counted(path, spec)


def test_a_weight_has_the_shape_of_its_values_and_of_two_claims_the_first_counts(
    graph: tuple[Path, GraphSpec],
) -> None:
    path, spec = graph
    expected = counted(path, spec)
    model = onnx.load(path)
    claims = [helper.make_tensor_value_info(name, 1, [99, 99]) for name in ("gemm_w", "soft")]
    model.graph.value_info.extend(claims)
    onnx.save_model(model, path)
    assert counted(path, spec) == expected


def test_weights_of_subgraphs_hide_nothing(graph: tuple[Path, GraphSpec]) -> None:
    path, spec = graph
    expected = counted(path, spec)
    model = onnx.load(path)
    inner = helper.make_graph(
        [helper.make_node("Identity", ["gemm_w"], ["v"])],
        "inner",
        [],
        [helper.make_tensor_value_info("v", 1, [99])],
        [numpy_helper.from_array(np.ones((99, 99), np.float32), "gemm_w")],
        value_info=[helper.make_tensor_value_info("soft", 10, [99, 99])],
    )
    model.graph.node[0].attribute.append(helper.make_attribute("body", inner))
    onnx.save_model(model, path)
    assert counted(path, spec) == expected


def test_the_shipped_model_has_what_its_manifest_says() -> None:
    """Counted by the version that wrote it, so that figures stay comparable."""
    manifest = open_bundle(MODELS / "nano", verify="deferred").manifest
    (variant,) = manifest.variants.values()
    for entry in variant.graphs.values():
        assert counted(MODELS / "nano" / entry.file, entry.spec) == entry.flops
