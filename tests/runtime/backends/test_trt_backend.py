"""TensorRT's backend on stand-ins for TensorRT and CUDA: order of calls, refusals, captures.

The stand-ins compute with ONNX Runtime on memory that is written when a stream is waited for, so
results are right only if everything was bound, ordered and waited for as it must be.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_bundle
import fake_cuda
import msgspec
import numpy as np
import pytest
from fake_tensorrt import fake_tensorrt

from refsam_engines.plans import PlanRequest, build_plans
from refsam_trt.backends.cuda import driver
from refsam_trt.backends.tensorrt import backend as trt_backend
from refsam_trt.backends.tensorrt import machine_check as plan_check
from refsam_trt.backends.tensorrt.backend import TrtBackend, TrtGraph
from refsam_trt.bundle.golden import GoldenRun, read_golden, write_golden
from refsam_trt.bundle.open import open_bundle
from refsam_trt.bundle.plans import Plans, open_plans
from refsam_trt.bundle.sealed import write_seal
from refsam_trt.contract.plan_manifest import PlanManifest
from refsam_trt.doctor import probe
from refsam_trt.errors import (
    BackendError,
    PlanDamagedError,
    PlanDeviceError,
    PlanMemoryError,
    PlanMismatchError,
    PlanVersionError,
)

REBUILD = "refsam-build BUNDLE --backend tensorrt --precision fp32 --output PLANS"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("trt") / "bundle", split="optimised")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> fake_cuda.FakeCuda:
    return fake_cuda.install(monkeypatch)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, cuda: fake_cuda.FakeCuda) -> ModuleType:
    module = fake_tensorrt("10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(probe, "ask", lambda *question: fake_cuda.GPU)
    return module


@pytest.fixture
def plans(trt: Any, bundle: Path, tmp_path: Path) -> Plans:
    request = PlanRequest(bundle, tmp_path / "plans", "tensorrt", "fp32", max_expressions=4)
    built = build_plans(request, lambda line: None)
    trt.calls.clear()
    return built


def load(plans: Plans, name: str = "image_encoder", marks: Path | None = None) -> TrtGraph:
    backend = TrtBackend(plans, marks)
    return backend.load(plans.plan(name), plans.manifest.graphs[name].spec)


def changed(plans: Plans, change: Callable[[PlanManifest], PlanManifest]) -> Plans:
    """Write another manifest, its hash fitting, and open the folder again."""
    write_seal(plans.folder, change(plans.manifest))
    return open_plans(plans.folder)


def with_builder(plans: Plans, **fields: object) -> Plans:
    builder = msgspec.structs.replace(plans.manifest.builder, **fields)
    return changed(plans, lambda manifest: msgspec.structs.replace(manifest, builder=builder))


def test_a_graph_is_handed_out_only_after_its_golden_inputs_were_right(plans: Plans, trt: Any):
    load(plans)
    kinds = [call[0] for call in trt.calls]
    assert kinds == [
        "Runtime",
        "deserialize_cuda_engine",
        "create_execution_context",
        "set_device_memory",
        "execute_async_v3",
    ]


def test_without_a_driver_no_runtime_is_made(
    plans: Plans, trt: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(driver, "describe", lambda: {"error": "not found (libcuda.so.1)"})
    with pytest.raises(BackendError, match="no GPU can be used: CUDA driver not found"):
        load(plans)
    assert trt.calls == []


@pytest.mark.parametrize(
    ("field", "value", "what", "here"),
    [
        ("version", "10.3.1", "version 10.3.1", "10.3.0"),
        ("platform", "linux-aarch64", "system linux-aarch64", plan_check.platform_name()),
    ],
)
def test_plans_for_something_else_are_refused_before_a_runtime_is_made(
    plans: Plans, trt: Any, field: str, value: str, what: str, here: str
):
    other = with_builder(plans, **{field: value})
    with pytest.raises(PlanVersionError) as refused:
        load(other)
    assert str(refused.value) == (
        f"{plans.folder}: built for {what}, here is {here}; build the plans again: {REBUILD}"
    )
    assert trt.calls == []


def test_an_unknown_cuda_is_no_reason_to_refuse(plans: Plans):
    assert plans.manifest.builder.cuda_major is None
    load(with_builder(plans, cuda_major=12))


@pytest.mark.parametrize(
    ("built_for", "is_right"),
    [
        (("8.7",), True),
        (("8.0", "8.6", "8.9", "12.0", "12.1", ">12.0"), False),
        (("9.0",), False),
        (None, True),
    ],
)
def test_plans_for_another_gpu_are_refused(plans: Plans, trt: Any, built_for: Any, is_right: bool):
    other = with_builder(plans, compute_capabilities=built_for)
    if is_right:
        load(other)
        return
    with pytest.raises(PlanDeviceError) as refused:
        load(other)
    assert str(refused.value) == (
        f"{plans.folder}: built for GPUs of compute capability {', '.join(built_for)}, here is "
        f"Some GPU with 8.7; build the plans again: {REBUILD}"
    )
    assert trt.calls == []


@pytest.mark.parametrize(
    ("capability", "is_right"),
    [
        ("8.9", True),
        ("12.1", True),
        ("12.3", True),
        ("13.0", True),
        ("9.0", False),
        ("10.3", False),
    ],
)
def test_later_gpus_are_those_after_the_last_known(capability: str, is_right: bool):
    known = ("8.0", "8.6", "8.9", "12.0", "12.1", ">12.0")
    assert plan_check._is_among(capability, known) == is_right


def test_a_plan_that_the_library_refuses_is_refused_with_its_words(plans: Plans, trt: Any):
    trt.fails_to_deserialise = True
    with pytest.raises(PlanDamagedError) as refused:
        load(plans)
    assert str(refused.value) == (
        f"{plans.folder}/image_encoder.plan: tensorrt 10.3.0 refuses this plan: Platform specific "
        f"tag mismatch; build the plans again: {REBUILD}"
    )


def test_too_little_memory_is_noticed_before_and_while_loading(
    plans: Plans, trt: Any, cuda: fake_cuda.FakeCuda
):
    cuda.free_bytes = 1000
    with pytest.raises(PlanMemoryError) as refused:
        load(plans)
    assert str(refused.value) == (
        f"{plans.folder}/image_encoder.plan: needs 0 MiB of GPU memory, 0 MiB are free; close "
        f"other programs on the GPU, or build smaller plans: {REBUILD} --max-expressions NUMBER"
    )
    cuda.free_bytes = 2**32
    graph = load(plans)
    cuda.free_bytes = 2000
    with pytest.raises(PlanMemoryError, match=r"image_encoder\.plan: CUDA: allocating 2048 bytes"):
        graph.context()
    cuda.free_bytes = 2**32
    trt.has_no_room = True
    with pytest.raises(PlanMemoryError, match="no execution context"):
        run(graph, np.zeros((1, 3, 32, 32), np.float32))


def test_a_plan_that_computes_something_else_is_refused(plans: Plans):
    runs = read_golden(plans.golden)
    encoder = runs["image_encoder"]
    first = next(iter(encoder.outputs))
    wrong = {**encoder.outputs, first: encoder.outputs[first] * 1.01}
    write_golden(plans.golden, {**runs, "image_encoder": GoldenRun(encoder.inputs, wrong)})
    entries = fake_bundle.file_entries(plans.folder)
    other = changed(plans, lambda manifest: msgspec.structs.replace(manifest, files=entries))
    with pytest.raises(PlanMismatchError) as refused:
        load(other)
    assert str(refused.value) == (
        f"{plans.folder}/image_encoder.plan: on Some GPU, output {first!r} differs from the golden "
        f"one by 0.0099 (relative), 0.001 is allowed for fp32; build the plans again: {REBUILD}, "
        "and if it stays so, use another --precision"
    )
    assert refused.value.exit_code == 1


@pytest.mark.parametrize(
    ("precision", "has_tf32", "allowed"),
    [
        ("fp32", False, 1e-3),
        ("fp32", True, 2e-2),
        ("fp16", False, 2e-2),
        ("fp16", True, 2e-2),
        ("int8-fp16", False, 1e-1),
    ],
)
def test_what_a_self_test_allows_is_the_graph_s_own_precision(
    plans: Plans, precision: str, has_tf32: bool, allowed: float
):
    runs = read_golden(plans.golden)
    encoder = runs["image_encoder"]

    def shifted(factor: float) -> Plans:
        wrong = {name: array * factor for name, array in encoder.outputs.items()}
        write_golden(plans.golden, {**runs, "image_encoder": GoldenRun(encoder.inputs, wrong)})
        entries = fake_bundle.file_entries(plans.folder)

        def edited(manifest: PlanManifest) -> PlanManifest:
            graphs = dict(manifest.graphs)
            graphs["image_encoder"] = msgspec.structs.replace(
                graphs["image_encoder"], precision=precision
            )
            builder = msgspec.structs.replace(manifest.builder, has_tf32=has_tf32)
            return msgspec.structs.replace(
                manifest, files=entries, graphs=graphs, builder=builder, precision="bf16"
            )

        return changed(plans, edited)

    load(shifted(1 / (1 + 0.9 * allowed)))
    with pytest.raises(PlanMismatchError, match=f"{allowed:g} is allowed for {precision};"):
        load(shifted(1 / (1 + 1.1 * allowed)))


def test_the_self_test_is_made_once_per_plan_gpu_and_driver(
    plans: Plans, trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    marks = tmp_path / "marks"

    def num_runs() -> int:
        trt.calls.clear()
        load(plans, marks=marks)
        return [call[0] for call in trt.calls].count("execute_async_v3")

    assert [num_runs(), num_runs()] == [1, 0]
    monkeypatch.setattr(driver, "describe", lambda: {**fake_cuda.GPU, "driver_version": "13.1"})
    assert [num_runs(), num_runs()] == [1, 0]
    marks_file = tmp_path / "a file"
    marks_file.write_text("")
    marks = marks_file / "marks"
    assert [num_runs(), num_runs()] == [1, 1]


def run(graph: TrtGraph, image: np.ndarray, times: int = 1) -> dict[str, np.ndarray]:
    backend, context = graph.backend, graph.context()
    inputs = {"image": backend.upload(image)}
    outputs = {t.name: backend.empty(t.shape({"M": 1}), t.dtype) for t in graph.spec.outputs}
    for _ in range(times):
        context.run(inputs, outputs)
    return {name: backend.download(buffer) for name, buffer in outputs.items()}


def test_results_are_those_of_the_graph(plans: Plans, bundle: Path):
    image = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    expected = fake_bundle.run_graph(bundle, "image_encoder", {"image": image})
    for times in (1, 2, 3):  # enqueued, captured and launched, launched again
        outputs = run(load(plans), image, times)
        for name, array in expected.items():
            np.testing.assert_allclose(outputs[name], array, atol=1e-6)


def test_what_comes_again_is_captured_and_what_changes_is_not(
    plans: Plans, trt: Any, monkeypatch: pytest.MonkeyPatch
):
    """Two buffers in turn, as track tokens are: each is captured once; a third takes a place."""
    monkeypatch.setattr(trt_backend, "_NUM_CAPTURES", 2)
    graph = load(plans)
    backend, context = graph.backend, graph.context()
    outputs = {t.name: backend.empty(t.shape({"M": 1}), t.dtype) for t in graph.spec.outputs}
    images = [backend.upload(np.full((1, 3, 32, 32), i, np.float32)) for i in range(3)]
    trt.calls.clear()

    def enqueued_by(index: int) -> int:
        before = len(trt.calls)
        context.run({"image": images[index]}, outputs)
        return [call[0] for call in trt.calls[before:]].count("execute_async_v3")

    assert [enqueued_by(0), enqueued_by(1)] == [1, 1]  # run as they are
    assert [enqueued_by(0), enqueued_by(1)] == [1, 1]  # captured
    assert [enqueued_by(0), enqueued_by(1), enqueued_by(0)] == [0, 0, 0]  # launched
    assert [enqueued_by(2), enqueued_by(0), enqueued_by(1)] == [1, 0, 1]  # 2 took the place of 1
    contexts = [call for call in trt.calls if call[0] == "create_execution_context"]
    assert contexts == [("create_execution_context", "USER_MANAGED")] * 2
    scratch = {call[1:] for call in trt.calls if call[0] == "set_device_memory"}
    assert len(scratch) == 1  # shared by both


def test_sizes_that_no_profile_has_and_failures_are_told(plans: Plans, trt: Any):
    graph = load(plans)
    backend, context = graph.backend, graph.context()
    many = {t.name: backend.empty(t.shape({"M": 1000}), t.dtype) for t in graph.spec.outputs}
    with pytest.raises(BackendError) as refused:
        context.run({"image": backend.empty((1000, 3, 32, 32), "float32")}, many)
    assert str(refused.value) == (
        f"{plans.folder}/image_encoder.plan: image [1000, 3, 32, 32] is outside of what the plan "
        "was built for; build it with larger --max-expressions or --max-words"
    )
    trt.fails_to_run = True
    backend.log.lines.append(("ERROR", "of another plan, long ago"))
    with pytest.raises(
        BackendError, match="could not be run by tensorrt: it gave no reason; run r"
    ):
        run(graph, np.zeros((1, 3, 32, 32), np.float32))


def test_a_plan_with_other_tensors_is_refused(plans: Plans):
    backend = TrtBackend(plans, None)
    spec = plans.manifest.graphs["decoder_step"].spec
    with pytest.raises(PlanDamagedError, match=r"image_encoder\.plan: the plan has the tensors"):
        backend.load(plans.plan("image_encoder"), spec)


def test_the_plans_are_of_this_bundle(plans: Plans, bundle: Path):
    plans.check_bundle(open_bundle(bundle))
