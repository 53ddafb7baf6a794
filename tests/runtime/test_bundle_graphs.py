"""ONNX files that are not what the manifest says, or reach out of the bundle: each refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import fake_bundle
import onnx
import pytest
from onnx import TensorProto, helper

from refsam_trt.bundle import open_bundle
from refsam_trt.errors import BundleError

VARIANT = "fp32-plain-baseline"
GRAPHS = f"graphs/{VARIANT}"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("bundle") / "b", external_data=True)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "bundle")


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(folder, verify="deferred")
    return str(caught.value).replace(str(folder), "BUNDLE")


def external(model: onnx.ModelProto, **entries: str) -> None:
    weight = next(t for t in model.graph.initializer if t.external_data)
    for key, value in entries.items():
        found = [pair for pair in weight.external_data if pair.key == key]
        (found[0] if found else weight.external_data.add(key=key)).value = value


def hidden_external(model: onnx.ModelProto) -> None:
    tensor = TensorProto(data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../../secret")
    branch = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "b", [], [])
    model.graph.node.append(
        helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    )


def drop_length(model: onnx.ModelProto) -> None:
    weight = next(t for t in model.graph.initializer if t.external_data)
    kept = [(pair.key, pair.value) for pair in weight.external_data if pair.key != "length"]
    del weight.external_data[:]
    for key, value in kept:
        weight.external_data.add(key=key, value=value)


MODELS: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "custom operator": (
        lambda m: setattr(m.graph.node[0], "domain", "com.evil"),
        "custom operator domain 'com.evil'; only ONNX's standard operators are run, since others "
        "need code from elsewhere",
    ),
    "custom import": (
        lambda m: m.opset_import.append(helper.make_opsetid("com.microsoft", 1)),
        "custom operator domain 'com.microsoft'",
    ),
    "custom function": (
        lambda m: m.functions.append(
            helper.make_function("local", "F", [], [], [], [helper.make_opsetid("", 20)])
        ),
        "custom operator domain 'local'",
    ),
    "other opset": (
        lambda m: setattr(m.opset_import[0], "version", 21),
        "operator set 21, the manifest says 20",
    ),
    "renamed input": (
        lambda m: setattr(m.graph.input[0], "name", "picture"),
        "inputs picture; the manifest says image",
    ),
    "dropped output": (
        lambda m: m.graph.output.pop(),
        "outputs image_embedding; the manifest says image_embedding, hda_features",
    ),
    "other dtype": (
        lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", TensorProto.FLOAT16),
        "output image_embedding is float16 [M, 256, 2, 2], the manifest says float32 [M, 256,",
    ),
    "other symbol": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", "batch"),
        "input image is float32 [batch, 3, 32, 32], the manifest says float32 [M, 3, 32, 32]",
    ),
    "unknown dim": (
        lambda m: m.graph.input[0].type.tensor_type.shape.dim[0].Clear(),
        "input image is float32 [?, 3, 32, 32]",
    ),
    "no shape": (
        lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"),
        "input image is float32 without a shape",
    ),
    "no tensor": (
        lambda m: m.graph.input[0].type.sequence_type.elem_type.tensor_type.SetInParent(),
        "input image is no tensor without a shape",
    ),
    "added node": (
        lambda m: m.graph.node.append(helper.make_node("Relu", ["image"], ["unused"])),
        "1 nodes of type Relu, the manifest says 0",
    ),
    "absolute external data": (
        lambda m: external(m, location="/etc/passwd"),
        "external data in '/etc/passwd', a path that is absolute; expected is a file of the bundle",
    ),
    "escaping external data": (
        lambda m: external(m, location="../../../x"),
        "external data in '../../../x', a path that leaves its folder",
    ),
    "memory as external data": (
        lambda m: external(m, location="*/_ORT_MEM_ADDR_/*"),
        "external data in '*/_ORT_MEM_ADDR_/*', a path that has parts",
    ),
    "unlisted external data": (
        lambda m: external(m, location="other.data"),
        f"external data in '{GRAPHS}/other.data', which the manifest does not list",
    ),
    "external data beyond the end": (
        lambda m: external(m, offset="7000"),
        f"external data at bytes 7000 to 10072 of '{GRAPHS}/image_encoder.onnx.data', which has "
        "7168",
    ),
    "external data without length": (
        drop_length,
        f"external data in '{GRAPHS}/image_encoder.onnx.data' without a length",
    ),
}


def change_model(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    path = folder / GRAPHS / "image_encoder.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    fake_bundle.refresh_files(folder)


@pytest.mark.parametrize("case", MODELS)
def test_refuses_a_graph_that_does_not_fit(folder: Path, case: str):
    change, problem = MODELS[case]
    change_model(folder, change)
    text = refusal(folder)
    assert text.startswith(f"BUNDLE/{GRAPHS}/image_encoder.onnx: ")
    assert problem in text
    assert text.endswith("export the bundle anew with refsam-export")


def test_refuses_external_data_hidden_in_a_subgraph(folder: Path):
    change_model(folder, hidden_external)
    manifest = fake_bundle.read_manifest(folder)
    manifest["variants"][VARIANT]["graphs"]["image_encoder"]["node_types"] |= {
        "If": 1,
        "Constant": 2,
    }
    fake_bundle.rewrite_manifest(folder, manifest)
    assert "external data in '../../../secret', a path that leaves its folder" in refusal(folder)


def test_refuses_a_file_that_is_no_onnx(folder: Path):
    (folder / GRAPHS / "image_encoder.onnx").write_bytes(b"not a model")
    fake_bundle.refresh_files(folder)
    assert f"BUNDLE/{GRAPHS}/image_encoder.onnx: not an ONNX model that can be read" in refusal(
        folder
    )
