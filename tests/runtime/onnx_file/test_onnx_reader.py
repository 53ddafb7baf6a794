"""The ONNX reader against the onnx package, also on models with bytes changed."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fake_bundle
import fake_graphs
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from refsam_trt.contract.precision import count_dtypes
from refsam_trt.errors import BundleError
from refsam_trt.onnx_file.reader import ExternalData, OnnxSummary, OnnxTensor, summarise_onnx

DTYPES = {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64", TensorProto.BOOL: "bool"}


def external_tensor(location: str, **entries: int) -> TensorProto:
    tensor = TensorProto(
        name=location, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL
    )
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def everything() -> onnx.ModelProto:
    """A model with whatever the reader looks at: subgraphs, functions, sparse and external data."""
    graph = parser.parse_graph(
        """g (bool cond, float[M, 3, "N+1"] x, float y, int64[] z) => (float[M, ?] out) {
            out = If (cond) <
                then_branch = a () => (float[M] o) {
                    o = If (cond) <
                        then_branch = c () => (float[M] p) { p = Relu(x) },
                        else_branch = d () => (float[M] p) { p = com.custom.Gelu(x) }
                    >
                },
                else_branch = b () => (float[M] q) { r = Relu(x)  q = ai.onnx.Neg(r) }
            >
        }""".replace('"N+1"', "N")
    )
    graph.input[1].type.tensor_type.shape.dim[2].dim_param = "N+1"
    graph.initializer.append(external_tensor("w.data", offset=8, length=16))
    graph.initializer.append(numpy_helper.from_array(np.arange(4), "inline"))
    branch = graph.node[0].attribute[0].g
    branch.initializer.append(external_tensor("branch.data", length=3))
    inner = branch.node[0].attribute[0].g
    inner.node.append(helper.make_node("Constant", [], ["k"], value=external_tensor("attribute")))
    sparse = onnx.SparseTensorProto(
        values=external_tensor("values"), indices=external_tensor("indices"), dims=[4]
    )
    graph.sparse_initializer.append(sparse)
    inner.node.append(helper.make_node("Constant", [], ["s"], sparse_value=sparse))
    listed = helper.make_node("Custom", [], ["l"], domain="other")
    listed.attribute.append(
        onnx.AttributeProto(
            name="many", type=onnx.AttributeProto.TENSORS, tensors=[external_tensor("list")]
        )
    )
    graph.node.append(listed)
    body = [helper.make_node("Constant", [], ["v"], value=external_tensor("function"))]
    function = helper.make_function(
        "local", "F", [], ["v"], body, [helper.make_opsetid("", 20), helper.make_opsetid("f", 3)]
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("com.custom", 1)],
        functions=[function],
        ir_version=10,
    )
    model.training_info.add().algorithm.node.append(helper.make_node("Adam", ["a"], ["b"]))
    return model


def messages(message: object, kind: type) -> Iterator[object]:
    """Yield every message of one type inside a protobuf message: the slow, obvious walk."""
    if isinstance(message, kind):
        yield message
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.message_type is not None:
            for child in (
                value
                if isinstance(value, (list, tuple)) or not hasattr(value, "ListFields")
                else [value]
            ):
                yield from messages(child, kind)


def expected_summary(model: onnx.ModelProto) -> OnnxSummary:
    nodes = list(messages(model, onnx.NodeProto))
    entries = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in messages(model, TensorProto)
        if tensor.data_location == TensorProto.EXTERNAL
    ]

    def plain(domain: str) -> str:
        return "" if domain == "ai.onnx" else domain

    def border(info: onnx.ValueInfoProto) -> OnnxTensor:
        tensor = info.type.tensor_type
        dims = tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in tensor.shape.dim
        )
        return OnnxTensor(
            info.name, DTYPES[tensor.elem_type], dims if tensor.HasField("shape") else None
        )

    return OnnxSummary(
        model.ir_version,
        {plain(opset.domain): opset.version for opset in model.opset_import},
        tuple(map(border, model.graph.input)),
        tuple(map(border, model.graph.output)),
        Counter(
            f"{plain(node.domain)}:{node.op_type}" if plain(node.domain) else node.op_type
            for node in nodes
        ),
        frozenset(
            [plain(node.domain) for node in nodes]
            + [plain(opset.domain) for opset in messages(model, onnx.OperatorSetIdProto)]
            + [plain(function.domain) for function in model.functions]
        ),
        tuple(
            ExternalData(
                entry["location"],
                int(entry.get("offset", 0)),
                int(entry["length"]) if "length" in entry else None,
            )
            for entry in entries
        ),
        (),  # types have tests of their own
        Counter(),
    )


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    return path


def assert_same(found: OnnxSummary, expected: OnnxSummary) -> None:
    def order(entry: ExternalData) -> str:
        return entry.location

    assert sorted(found.external_data, key=order) == sorted(expected.external_data, key=order)
    for name in ("ir_version", "opsets", "inputs", "outputs", "node_types", "domains"):
        assert getattr(found, name) == getattr(expected, name), name


def test_agrees_with_onnx_on_a_model_with_everything(tmp_path: Path):
    model = everything()
    found = summarise_onnx(write(tmp_path, model.SerializeToString()))
    assert_same(found, expected_summary(model))
    assert found.domains == {"", "com.custom", "other", "local", "f"}
    assert found.node_types["com.custom:Gelu"] == 1
    assert found.inputs[1] == OnnxTensor("x", "float32", ("M", 3, "N+1"))
    assert found.inputs[2].dims == ()
    assert found.inputs[3].dims is None
    assert {entry.location for entry in found.external_data} == {
        *("w.data", "branch.data", "attribute", "values", "indices", "list", "function")
    }


@pytest.mark.parametrize("split", ["baseline", "optimised"])
def test_agrees_with_onnx_on_graphs_as_in_a_bundle(tmp_path: Path, split: str):
    for model, _ in fake_graphs.make_graphs(32, 2, split).values():
        path = tmp_path / "graph.onnx"
        by_operator, by_type = fake_bundle.count_nodes(model)
        model = fake_bundle.with_shapes(model)
        onnx.save_model(model, path, save_as_external_data=True, location="d", size_threshold=0)
        saved = onnx.load(path, load_external_data=False)
        found = summarise_onnx(path)
        assert_same(found, expected_summary(saved))
        assert found.external_data
        assert found.node_types == by_operator
        assert count_dtypes(found.typed_nodes) == by_type
        (tmp_path / "d").unlink()


SEED_MODELS = [
    everything().SerializeToString(),
    fake_graphs.make_graphs(32, 2, "baseline")["text_encoder"][0].SerializeToString(),
]
PATCHES = st.lists(
    st.tuples(
        st.integers(0, 2**16), st.sampled_from(["set", "insert", "cut"]), st.binary(max_size=9)
    ),
    max_size=6,
)


@settings(
    max_examples=1500,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(model=st.sampled_from(SEED_MODELS), patches=PATCHES)
def test_mutated_models_end_in_a_summary_or_a_bundle_error(
    tmp_path: Path, model: bytes, patches: list[tuple[int, str, bytes]]
):
    content = bytearray(model)
    for position, action, piece in patches:
        start = position % (len(content) + 1)
        stop = {"set": start + len(piece), "insert": start, "cut": len(content)}[action]
        content[start:stop] = piece
    path = write(tmp_path, bytes(content))
    with contextlib.suppress(BundleError):
        assert summarise_onnx(path).opsets
