"""Folders of plans as TensorRT-RTX really builds them, and every way they can be spoilt."""

import hashlib
import re
import shutil
from pathlib import Path

import fake_bundle
import half_bundle
import msgspec
import pytest
from rtx_probe import needs_rtx

from refsam_engines import build
from refsam_engines import plans as plans_module
from refsam_engines.build import BuildOptions
from refsam_engines.inspect import report_lines
from refsam_engines.plans import BuildStopped, PlanRequest, build_plans
from refsam_engines.rtx_header import RtxHeader
from refsam_trt import limits
from refsam_trt.bundle.golden import read_golden
from refsam_trt.bundle.open import open_bundle
from refsam_trt.bundle.plans import Plans, is_plans, open_plans
from refsam_trt.bundle.sealed import write_seal
from refsam_trt.contract.manifest import FileEntry, Limits
from refsam_trt.contract.plan_manifest import PlanManifest, Profile
from refsam_trt.errors import (
    BundleError,
    InternalError,
    OutputError,
    PlanBuildError,
    PlanDamagedError,
    UsageError,
)

pytestmark = needs_rtx


@pytest.fixture
def copy(plans: Plans, tmp_path: Path) -> Path:
    return shutil.copytree(plans.folder, tmp_path / "copy")


def change_manifest(folder: Path, **changes: object) -> None:
    """Change fields of the manifest, its hash fitting: only its content is wrong."""
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes(), type=PlanManifest)
    write_seal(folder, msgspec.structs.replace(manifest, **changes))


def test_the_manifest_tells_what_was_built_from_what(plans: Plans, bundle_folder: Path):
    bundle = open_bundle(bundle_folder)
    manifest = plans.manifest
    assert manifest.bundle_id == bundle.bundle_id
    assert (manifest.variant, manifest.precision) == ("fp32-plain-optimised", "fp32")
    assert manifest.limits == Limits(max_frames=1, max_expressions=8, max_words=64)
    builder = manifest.builder
    assert builder.backend == "tensorrt-rtx"
    assert re.fullmatch(r"1\.\d+\.\d+\.\d+", builder.version)
    assert builder.compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1", ">12.0")
    assert builder.gpu_name is None
    assert not builder.has_tf32
    assert set(manifest.graphs) == {"image_encoder", "text_encoder", "decoder_step"}
    (variant,) = bundle.manifest.variants.values()
    for name, entry in manifest.graphs.items():
        assert entry.spec == variant.graphs[name].spec
        assert entry.precision == variant.graphs[name].precision == "fp32"
        assert entry.graph_id == bundle.content_id(variant.graphs[name].file)
    step = manifest.graphs["decoder_step"].profiles["has_track"]
    assert step == Profile((1,), (4,), (8,))
    plans.check_bundle(bundle)
    assert open_plans(plans.folder) == plans


def test_what_is_known_without_a_gpu_is_told_and_the_rest_is_null(plans: Plans):
    report = plans.manifest.graphs["decoder_step"].report
    assert report.num_layers == sum(sum(types.values()) for types in report.layers.values())
    assert report.layers["DECONVOLUTION"] == {"FLOAT": 1}
    assert report.activation_bytes is not None
    assert report.activation_bytes > 0
    assert report.num_engine_layers is None
    assert report.precision_warnings == ()
    lines = "\n".join(report_lines(plans.manifest))
    assert "for compute capabilities 8.0, 8.6, 8.9, 12.0, 12.1, >12.0" in lines
    assert "layers, unknown in the plan; fused attention in 0 of 0" in lines
    assert "1 MATRIX_MULTIPLY FLOAT, 1 DECONVOLUTION FLOAT" in lines


def test_golden_tensors_are_a_real_chain(plans: Plans, bundle_folder: Path):
    runs = read_golden(plans.golden)
    assert runs.keys() == plans.manifest.graphs.keys()
    encoder, step = runs["image_encoder"], runs["decoder_step"]
    assert step.inputs["image_embedding"].tolist() == encoder.outputs["image_embedding"].tolist()
    assert step.inputs["has_track"].tolist() == [False, True]
    words = step.inputs["word_mask"]
    assert words[:, :-1].all()
    assert not words[:, -1].any()  # padding, so that a plan that ignores the mask is noticed
    assert runs["text_encoder"].inputs["attention_mask"].tolist() == words[:1].tolist()
    for name, run in runs.items():
        again = fake_bundle.run_graph(bundle_folder, name, dict(run.inputs))
        assert max(run.errors(again).values()) < 1e-6


@pytest.mark.parametrize(
    "name",
    ["decoder_step.plan", "golden.safetensors", "manifest.json", "manifest.sha256"],
)
def test_one_changed_byte_is_refused(copy: Path, name: str):
    raw = bytearray((copy / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (copy / name).write_bytes(raw)
    with pytest.raises(PlanDamagedError) as refused:
        open_plans(copy)
    is_manifest = name.startswith("manifest")
    expected = "one of the two files was altered" if is_manifest else "damaged or changed"
    assert f"{expected}; build the plans again with refsam-build" in str(refused.value)
    assert str(copy / ("manifest.sha256" if is_manifest else name)) in str(refused.value)


def test_a_truncated_plan_is_refused(copy: Path):
    path = copy / "image_encoder.plan"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PlanDamagedError, match=r"image_encoder.plan: \d+ bytes, the manifest says"):
        open_plans(copy)


def test_files_that_are_missing_or_too_many_are_refused(copy: Path):
    (copy / "extra").write_bytes(b"")
    with pytest.raises(PlanDamagedError, match="'extra' is not listed in the manifest"):
        open_plans(copy)
    (copy / "extra").unlink()
    (copy / "text_encoder.plan").unlink()
    with pytest.raises(PlanDamagedError, match=r"text_encoder\.plan: missing, but listed"):
        open_plans(copy)


def test_a_manifest_of_another_schema_or_none_is_refused(copy: Path, tmp_path: Path):
    change_manifest(copy, schema_version=1)
    with pytest.raises(
        PlanDamagedError,
        match="1, 2 expected: made by an older refsam_trt; build the",
    ):
        open_plans(copy)
    change_manifest(copy, schema_version=2, golden_source=3)
    with pytest.raises(PlanDamagedError, match="not a manifest of schema 2"):
        open_plans(copy)
    with pytest.raises(
        PlanDamagedError, match="it is no plan folder; give the folder that refsam-b"
    ):
        open_plans(tmp_path)


def test_a_manifest_is_as_strict_as_that_of_a_bundle(copy: Path, plans: Plans):
    def refused(raw: bytes, problem: str) -> None:
        (copy / "manifest.json").write_bytes(raw)
        (copy / "manifest.sha256").write_text(f"{hashlib.sha256(raw).hexdigest()}\n")
        with pytest.raises(PlanDamagedError, match=problem):
            open_plans(copy)

    raw = (copy / "manifest.json").read_bytes()
    refused(raw + b"\n", r"not in canonical form .*: the plan folder id would depend on how")
    refused(raw[:-5], r"manifest\.json: not JSON \(")
    refused(b"[" * 100_000, "not a manifest of schema 2|values nested more than 32 deep")
    refused(b" " * (limits.MAX_MANIFEST_BYTES + 1), "more than 8388608 bytes; build the plans")
    (copy / "manifest.json").write_bytes(raw)
    name, entry = next(iter(plans.manifest.files.items()))
    change_manifest(copy, files={**plans.manifest.files, name: FileEntry(entry.size_bytes, "A")})
    with pytest.raises(PlanDamagedError, match="has the SHA-256 'A', 64 lower-case hexadecimal"):
        open_plans(copy)
    (copy / "link").symlink_to(copy / name)
    with pytest.raises(PlanDamagedError, match="'link' is a symbolic link; a plan folder holds"):
        open_plans(copy)


def test_a_manifest_that_forgets_files_is_refused(copy: Path, plans: Plans):
    change_manifest(copy, files={})
    with pytest.raises(PlanDamagedError, match="is not listed in the manifest"):
        open_plans(copy)
    files = {n: f for n, f in plans.manifest.files.items() if n != "golden.safetensors"}
    change_manifest(copy, files=files)
    (copy / "golden.safetensors").unlink()
    with pytest.raises(PlanDamagedError, match=r"'golden\.safetensors' is not among files"):
        open_plans(copy)


def test_a_path_that_leaves_the_folder_is_refused(copy: Path, plans: Plans):
    files = dict(plans.manifest.files)
    files["../x.plan"] = files["image_encoder.plan"]
    change_manifest(copy, files=files)
    with pytest.raises(PlanDamagedError, match="a path that leaves its folder"):
        open_plans(copy)


def test_plans_of_another_bundle_are_refused(plans: Plans, copy: Path, bundle_folder: Path):
    bundle = open_bundle(bundle_folder)
    change_manifest(copy, bundle_id="0" * 64)
    with pytest.raises(PlanDamagedError) as refused:
        open_plans(copy).check_bundle(bundle)
    assert str(refused.value) == (
        f"{copy}: built from bundle {'0' * 64}, given was {bundle_folder}, bundle "
        f"{bundle.bundle_id}; refsam-build BUNDLE --backend tensorrt-rtx --precision fp32 "
        "--output PLANS"
    )
    entry = plans.manifest.graphs["image_encoder"]
    changed = msgspec.structs.replace(entry, graph_id="1" * 64)
    graphs = {**plans.manifest.graphs, "image_encoder": changed}
    change_manifest(copy, bundle_id=bundle.bundle_id, graphs=graphs)
    for precision in ("fp8", "x"):  # what a self-test allows depends on it
        other = msgspec.structs.replace(entry, precision=precision)
        change_manifest(copy, graphs={**plans.manifest.graphs, "image_encoder": other})
        told = f"'image_encoder' calls itself {precision}, the bundle's graph is fp32"
        with pytest.raises(PlanDamagedError, match=told):
            open_plans(copy).check_bundle(bundle)
    change_manifest(copy, graphs=graphs)
    with pytest.raises(PlanDamagedError, match=f"was built from graph {'1' * 64}, the bundle has"):
        open_plans(copy).check_bundle(bundle)
    change_manifest(copy, graphs=plans.manifest.graphs, variant="other")
    with pytest.raises(PlanDamagedError, match="has other tensors than variant 'other'"):
        open_plans(copy).check_bundle(bundle)


def test_a_plan_that_was_not_built_is_named(plans: Plans):
    with pytest.raises(UsageError, match="no plan of graph 'other', only decoder_step, image_enc"):
        plans.plan("other")


def request(bundle: Path, output: Path, **changes: object) -> PlanRequest:
    return PlanRequest(bundle, output, "tensorrt-rtx", "fp32", **changes)


def test_a_place_that_is_taken_is_refused_before_anything_is_built(copy: Path, tmp_path: Path):
    absent = tmp_path / "no bundle"
    with pytest.raises(OutputError, match="exists already; choose another name, or ask"):
        build_plans(request(absent, copy), lambda line: None)
    with pytest.raises(OutputError, match=r"holds no golden\.safetensors, so it is not"):
        build_plans(request(absent, tmp_path, overwrite=True), lambda line: None)
    with pytest.raises(OutputError, match="does not exist; create it first"):
        build_plans(request(absent, tmp_path / "a" / "b"), lambda line: None)


def test_a_build_that_is_stopped_leaves_nothing(bundle_folder: Path, tmp_path: Path):
    steps: list[str] = []
    options = BuildOptions(on_progress=steps.append, should_stop=lambda: len(steps) > 40)
    with pytest.raises(BuildStopped):
        build_plans(request(bundle_folder, tmp_path / "p", options=options), lambda line: None)
    assert "Building engine" in steps
    assert not list(tmp_path.iterdir())


def test_a_graph_that_tensorrt_does_not_know_is_refused_with_the_node(tmp_path: Path):
    import onnx

    folder = fake_bundle.make_bundle(tmp_path / "bundle")
    path = folder / "graphs/fp32-plain-baseline/image_encoder.onnx"
    model = onnx.load(path)
    node = onnx.helper.make_node("NonZero", [model.graph.input[0].name], ["unused"], name="odd")
    model.graph.node.insert(0, node)
    onnx.save(model, path)
    manifest = fake_bundle.read_manifest(folder)
    (variant,) = manifest["variants"].values()
    entry = variant["graphs"]["image_encoder"]
    entry["node_types"]["NonZero"] = 1
    if "node_dtypes" in entry:
        entry["node_dtypes"]["int64"] = entry["node_dtypes"].get("int64", 0) + 1
    fake_bundle.rewrite_manifest(folder, manifest)
    fake_bundle.refresh_files(folder)
    with pytest.raises(PlanBuildError) as refused:
        build_plans(request(folder, tmp_path / "plans"), lambda line: None)
    assert re.search(r"image_encoder.onnx: tensorrt-rtx 1.*cannot", str(refused.value))
    assert not (tmp_path / "plans").exists()


def test_fp16_plans_multiply_in_fp16(tmp_path: Path):
    folder = half_bundle.make_half_precision(fake_bundle.make_bundle(tmp_path / "bundle"))
    half = PlanRequest(folder, tmp_path / "plans", "tensorrt-rtx", "fp16")
    manifest = build_plans(half, lambda line: None).manifest
    step = manifest.graphs["decoder_step"]
    assert step.report.layers["MATRIX_MULTIPLY"] == {"HALF": 1}
    assert {tensor.dtype for tensor in step.spec.outputs} == {"float16"}


def test_a_graph_that_is_parsed_into_other_types_is_refused(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    counted = build.count_types

    def wide_as_half(network: object) -> dict[str, dict[str, int]]:
        return {**counted(network), "CONVOLUTION": {}}

    monkeypatch.setattr(build, "count_types", wide_as_half)
    with pytest.raises(PlanBuildError, match=r"CONVOLUTION layers of types \{\}, the graph has"):
        build_plans(request(bundle_folder, tmp_path / "plans"), lambda line: None)
    assert not (tmp_path / "plans").exists()


def test_rtx_has_no_timing_cache(bundle_folder: Path, tmp_path: Path):
    options = BuildOptions(timing_cache=tmp_path / "timing.cache")
    with pytest.raises(UsageError) as refused:
        build_plans(request(bundle_folder, tmp_path / "a", options=options), lambda line: None)
    assert str(refused.value) == (
        "--timing-cache: backend tensorrt-rtx measures no kernels when it builds, so it has no "
        "timing cache; leave the option out"
    )


def test_a_bundle_is_not_taken_for_plans(plans: Plans, bundle_folder: Path, tmp_path: Path):
    assert is_plans(plans.folder)
    assert not is_plans(bundle_folder)
    assert not is_plans(tmp_path)


@pytest.mark.parametrize("pattern", ["*.onnx", "*.data", "manifest.json", "tokenizer.json"])
def test_one_changed_byte_in_the_bundle_is_refused(
    bundle_folder: Path, tmp_path: Path, pattern: str
):
    folder = shutil.copytree(bundle_folder, tmp_path / "bundle")
    path = sorted(folder.rglob(pattern))[0]
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BundleError) as refused:
        build_plans(request(folder, tmp_path / "plans"), lambda line: None)
    assert re.search(r"SHA-256|manifest\.sha256", str(refused.value))
    assert str(path) in str(refused.value) or path.name in str(refused.value)
    assert not (tmp_path / "plans").exists()


def test_a_header_of_another_version_than_the_library_is_our_own_bug(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    header = RtxHeader("1.0.0.0", 1, ("8.9",))
    monkeypatch.setattr(plans_module, "read_rtx_header", lambda path: header)
    with pytest.raises(InternalError, match=r"^1\..* wrote a plan of version 1\.0\.0\.0$"):
        build_plans(request(bundle_folder, tmp_path / "plans"), lambda line: None)
