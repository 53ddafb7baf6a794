"""ONNX files that are not what the manifest says, or reach out of the bundle: each refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_bundle
import onnx
import pytest
from half_bundle import make_half_precision
from onnx import TensorProto, helper

import refsam_trt
from refsam_trt.bundle.open import open_bundle
from refsam_trt.errors import BundleError

VARIANT = "fp32-plain-baseline"
GRAPHS = f"graphs/{VARIANT}"
Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("bundle") / "b", external_data=True)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "bundle")


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(folder, verify="deferred").verify()
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
    entry = manifest["variants"][VARIANT]["graphs"]["image_encoder"]
    entry["node_types"] |= {"If": 1, "Constant": 2}
    entry["node_dtypes"] |= {"float32": entry["node_dtypes"]["float32"] + 2, "unknown": 1}
    fake_bundle.rewrite_manifest(folder, manifest)
    assert "external data in '../../../secret', a path that leaves its folder" in refusal(folder)


def restate(folder: Path, change: Callable[[Manifest], object]) -> str:
    manifest = fake_bundle.read_manifest(folder)
    change(manifest["variants"][VARIANT])
    fake_bundle.rewrite_manifest(folder, manifest)
    return refusal(folder)


def state_fp16(variant: Manifest) -> None:
    variant["precision"] = "fp16"
    for entry in variant["graphs"].values():
        entry["precision"] = "fp16"


def test_refuses_an_fp32_graph_that_calls_itself_fp16(folder: Path):
    assert restate(folder, state_fp16) == (
        f"BUNDLE/{GRAPHS}/decoder_step.onnx: states the precision fp16, but 1 nodes of type "
        "ConvTranspose compute in float32, not in float16; export the bundle anew with "
        "refsam-export"
    )


@pytest.fixture
def half(tmp_path: Path) -> Path:
    return make_half_precision(fake_bundle.make_bundle(tmp_path / "half"))


def test_refuses_an_fp16_graph_that_calls_itself_fp32(half: Path):
    def state_fp32(variant: Manifest) -> None:
        variant["precision"] = "fp32"
        for entry in variant["graphs"].values():
            entry["precision"] = "fp32"

    assert (
        "decoder_step.onnx: states the precision fp32, but 5 nodes of type Add compute in float16"
        in restate(half, state_fp32)
    )


def test_refuses_one_product_in_fp32_among_fp16(half: Path):
    """Counted right in the manifest: the counts alone would not tell."""
    path = half / GRAPHS / "decoder_step.onnx"
    model = onnx.load(path)
    index = next(i for i, n in enumerate(model.graph.node) if n.op_type == "MatMul")
    product = model.graph.node[index]
    (result,) = product.output
    casts = [
        helper.make_node("Cast", [name], [f"{name}_wide"], to=TensorProto.FLOAT)
        for name in product.input
    ]
    product.input[:] = [f"{name}_wide" for name in product.input]
    product.output[:] = [f"{result}_wide"]
    narrow = helper.make_node("Cast", [f"{result}_wide"], [result], to=TensorProto.FLOAT16)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:index], *casts, product, narrow, *nodes[index + 1 :]])
    onnx.save_model(fake_bundle.with_shapes(model), path)
    manifest = fake_bundle.read_manifest(half)
    entry = manifest["variants"][VARIANT]["graphs"]["decoder_step"]
    fake_bundle.count_again(half, entry, model)
    fake_bundle.rewrite_manifest(half, manifest)
    fake_bundle.refresh_files(half)
    assert (
        "decoder_step.onnx: states the precision fp16, but 1 nodes of type MatMul compute in "
        "float32, not in float16" in refusal(half)
    )


def test_refuses_types_other_than_the_manifest_counts(folder: Path):
    def miscount(variant: Manifest) -> None:
        variant["graphs"]["image_encoder"]["node_dtypes"]["float32"] -= 1

    assert "image_encoder.onnx: 5 nodes in float32, the manifest says 4" in restate(
        folder, miscount
    )


@pytest.mark.parametrize(
    ("variant", "graphs", "problem"),
    [
        (
            "int3",
            "int3",
            "precision 'int3', this version knows fp32, fp16, bf16, int8, fp8; update refsam_trt",
        ),
        ("fp16", "bf16", "graph 'decoder_step': precision 'bf16', expected 'fp16' or 'fp32'"),
        ("fp16", "fp32", "graph 'image_encoder': precision 'fp32', expected 'fp16'"),
    ],
)
def test_refuses_precisions_that_do_not_go_together(
    folder: Path, variant: str, graphs: str, problem: str
):
    def change(entry: Manifest) -> None:
        entry["precision"] = variant
        for graph in entry["graphs"].values():
            graph["precision"] = graphs

    assert f"manifest.json: variant '{VARIANT}'" in (text := restate(folder, change))
    assert problem in text


def test_refuses_a_file_that_is_no_onnx(folder: Path):
    (folder / GRAPHS / "image_encoder.onnx").write_bytes(b"not a model")
    fake_bundle.refresh_files(folder)
    assert f"BUNDLE/{GRAPHS}/image_encoder.onnx: not an ONNX model that can be read" in refusal(
        folder
    )


USES = {
    "path": lambda bundle, file: bundle.path(file),
    "verify_file": lambda bundle, file: bundle.verify_file(file),
    "content_id": lambda bundle, file: bundle.content_id(file),
    "external_data": lambda bundle, file: bundle.external_data(file),
    "check_variant": lambda bundle, _: bundle.check_variant(VARIANT),
    "verify": lambda bundle, _: bundle.verify(),
}


@pytest.mark.parametrize("use", USES)
def test_no_use_of_a_graph_goes_round_its_check(folder: Path, use: str):
    change_model(folder, lambda model: setattr(model.opset_import[0], "version", 21))
    bundle = open_bundle(folder, verify="deferred")
    bundle.verify_file("tokenizer.json")
    for _ in range(2):  # a refusal is not forgotten
        with pytest.raises(BundleError, match="operator set 21, the manifest says 20"):
            USES[use](bundle, f"{GRAPHS}/image_encoder.onnx")
    with pytest.raises(BundleError, match="operator set 21, the manifest says 20"):
        refsam_trt.load(folder, verify="deferred")
    with pytest.raises(BundleError, match="operator set 21, the manifest says 20"):
        refsam_trt.load(bundle, verify="deferred")


def test_nothing_is_parsed_but_what_was_sealed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    path = folder / GRAPHS / "image_encoder.onnx"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    monkeypatch.setattr("refsam_trt.bundle.open.check_graph", lambda *_: pytest.fail("parsed"))
    bundle = open_bundle(folder, verify="deferred")
    with pytest.raises(BundleError, match=r"image_encoder\.onnx: SHA-256"):
        bundle.path(f"{GRAPHS}/image_encoder.onnx")


def test_deferred_loading_checks_the_graphs_that_run_and_a_file_against_all_its_entries(
    folder: Path,
):
    manifest = fake_bundle.read_manifest(folder)
    good = manifest["variants"][VARIANT]
    other = json.loads(json.dumps(good))
    file = f"{GRAPHS}/other.onnx"
    shutil.copyfile(folder / GRAPHS / "decoder_step.onnx", folder / file)
    other["graphs"]["decoder_step"] |= {"file": file, "node_types": {"Relu": 1}}
    manifest["variants"]["other"] = other
    fake_bundle.rewrite_manifest(folder, manifest)
    fake_bundle.refresh_files(folder)
    refsam_trt.load(folder, variant=VARIANT, verify="deferred").close()
    for options in ({"variant": "other", "verify": "deferred"}, {"variant": VARIANT}):
        with pytest.raises(BundleError, match=r"other\.onnx: .* nodes of type"):
            refsam_trt.load(folder, **options)
    # The same file under two entries: what one says of it wrongly is no less wrong for the other.
    other["graphs"]["decoder_step"]["file"] = good["graphs"]["decoder_step"]["file"]
    (folder / file).unlink()
    fake_bundle.rewrite_manifest(folder, manifest)
    fake_bundle.refresh_files(folder)
    with pytest.raises(BundleError, match=r"decoder_step\.onnx: .* nodes of type"):
        refsam_trt.load(folder, variant=VARIANT, verify="deferred")


def test_an_opened_bundle_is_loaded_without_a_second_check(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    bundle = open_bundle(folder)
    for name in ("sealed.sha256_of_file", "open.check_graph", "open.open_sealed"):
        monkeypatch.setattr(f"refsam_trt.bundle.{name}", lambda *_: pytest.fail("checked again"))
    with refsam_trt.load(bundle, expect_id=bundle.bundle_id) as engine:
        assert engine.bundle_id == bundle.bundle_id
    with pytest.raises(BundleError, match=f"expected was {'0' * 64}; give the right bundle"):
        refsam_trt.load(bundle, expect_id="0" * 64)


def test_loading_an_opened_bundle_checks_what_was_deferred(folder: Path):
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"unk", b"ukn"))
    bundle = open_bundle(folder, verify="deferred")
    with pytest.raises(BundleError, match=r"tokenizer\.json: SHA-256"):
        refsam_trt.load(bundle)
