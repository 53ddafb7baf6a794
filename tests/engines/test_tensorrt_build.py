"""The build path of TensorRT proper, on a stand-in that has each version's names and no others."""

import gc
import sys
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_tensorrt import MAGIC, fake_tensorrt

from refsam_engines import build as build_module
from refsam_engines.build import BuildOptions
from refsam_engines.plans import PlanRequest, build_plans
from refsam_trt.bundle.plans import Plans
from refsam_trt.doctor import probe
from refsam_trt.errors import PlanBuildError, PlanDeviceError

VERSIONS = ["10.3.0", "10.16.1.11", "11.4.0.106"]
GPU = {
    "driver_version": "13.0",
    "devices": [{"name": "Some GPU", "compute_capability": "8.7", "memory_mib": 4096}],
}


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = fake_tensorrt(request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(probe, "ask", lambda *question: GPU)
    return module


def build(bundle: Path, output: Path, **options: Any) -> Plans:
    request = PlanRequest(
        bundle, output, "tensorrt", "fp32", max_expressions=4, options=BuildOptions(**options)
    )
    return build_plans(request, lambda line: None)


def test_one_strongly_typed_path_for_every_version(trt: Any, bundle_folder: Path, tmp_path: Path):
    plans = build(bundle_folder, tmp_path / "plans")
    # Through the enum, whose integer differs: 1 << 1 in TensorRT 10, 1 << 0 in 11.
    flags = {call[1] for call in trt.calls if call[0] == "create_network"}
    assert flags == {2 if trt.__version__.startswith("10.") else 1}
    assert ("clear_flag", "TF32") in trt.calls
    assert ("set_shape", "has_track", (1,), (4,), (4,)) in trt.calls
    builder = plans.manifest.builder
    assert (builder.backend, builder.version) == ("tensorrt", trt.__version__)
    assert (builder.gpu_name, builder.driver_version) == ("Some GPU", "13.0")
    assert builder.compute_capabilities == ("8.7",)
    assert plans.plan("image_encoder").read_bytes().startswith(MAGIC)


def test_the_log_is_reported_and_what_it_lacks_is_null(
    trt: Any, bundle_folder: Path, tmp_path: Path
):
    report = build(bundle_folder, tmp_path / "plans").manifest.graphs["decoder_step"].report
    assert report.activation_bytes == 1024
    assert report.weights_bytes is None
    assert report.num_fused_attention is None
    assert report.num_engine_layers == 7  # told by the plan, deserialised on the GPU that built it
    assert report.precision_warnings == ("Detected layernorm nodes in FP16, may cause overflow",)
    assert report.warnings[1:] == ("Using default profile",)


def test_a_plan_that_the_gpu_refuses_at_once_has_an_unknown_number_of_layers(
    trt: Any, bundle_folder: Path, tmp_path: Path
):
    trt.fails_to_deserialise = True
    report = build(bundle_folder, tmp_path / "plans").manifest.graphs["decoder_step"].report
    assert report.num_engine_layers is None


def test_options_reach_the_builder(trt: Any, bundle_folder: Path, tmp_path: Path):
    plans = build(bundle_folder, tmp_path / "plans", has_tf32=True, workspace_mib=64)
    assert ("clear_flag", "TF32") not in trt.calls
    assert ("set_memory_pool_limit", "WORKSPACE", 64 * 2**20) in trt.calls
    assert plans.manifest.builder.has_tf32
    assert plans.manifest.builder.workspace_mib == 64


def test_a_timing_cache_is_kept_and_a_wrong_one_refused(
    trt: Any, bundle_folder: Path, tmp_path: Path
):
    cache = tmp_path / "timing.cache"
    build(bundle_folder, tmp_path / "a", timing_cache=cache)
    assert cache.read_bytes() == b"+++"  # one for each graph, handed from one to the next
    cache.write_bytes(b"broken")
    with pytest.raises(PlanBuildError) as refused:
        build(bundle_folder, tmp_path / "b", timing_cache=cache)
    assert str(refused.value) == (
        f"{cache}: no timing cache of this TensorRT and GPU; remove it, or give another "
        "--timing-cache"
    )
    with pytest.raises(PlanBuildError, match=r"cannot be read \(Is a directory\); give another"):
        build(bundle_folder, tmp_path / "b", timing_cache=tmp_path)


def test_a_failed_build_tells_what_the_library_said(trt: Any, bundle_folder: Path, tmp_path: Path):
    trt.fails_to_build = True
    with pytest.raises(PlanBuildError) as refused:
        build(bundle_folder, tmp_path / "plans")
    assert str(refused.value).endswith(
        f"decoder_step.onnx: tensorrt {trt.__version__} cannot build this graph: no kernel fits; "
        "try smaller --max-frames, --max-expressions or --workspace-mib, or another --precision"
    )
    assert not (tmp_path / "plans").exists()


def test_without_a_gpu_nothing_of_tensorrt_is_created(
    trt: Any, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(probe, "ask", lambda *question: {"error": "not found (libcuda.so.1)"})
    with pytest.raises(PlanDeviceError) as refused:
        build(bundle_folder, tmp_path / "plans")
    assert str(refused.value) == (
        "backend tensorrt builds on the GPU that is to run the plans, and there is none here: CUDA "
        "driver not found (libcuda.so.1); run refsam-build on that machine, or use --backend "
        "tensorrt-rtx, which builds without one"
    )
    assert trt.calls == []


@pytest.mark.parametrize("fails", ["parse_graph", "check_tensors", "check_precision", "report_on"])
def test_a_failed_build_leaves_no_builder_behind_in_its_error(
    trt: Any, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
):
    """TensorRT-RTX hangs if the garbage collector destroys one while another one builds."""
    made: list[weakref.ref[Any]] = []
    builder = trt.Builder

    def noted(logger: Any) -> Any:
        found = builder(logger)
        made.append(weakref.ref(found))
        return found

    def fail(*given: object) -> None:
        try:
            raise KeyError("inside")
        except KeyError as error:
            raise PlanBuildError("no") from error

    monkeypatch.setattr(trt, "Builder", noted)
    monkeypatch.setattr(build_module, fails, fail)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(PlanBuildError) as refused:
            build(bundle_folder, tmp_path / "plans")
        assert refused.value.__traceback__ is not None
        assert [reference() for reference in made] == [None]
    finally:
        gc.enable()
