"""TensorRT-RTX on stand-ins with its real names: sessions, and every reason to refuse a plan."""

import sys
from pathlib import Path
from typing import Any

import fake_bundle
import fake_cuda
import numpy as np
import pytest
from fake_tensorrt import fake_tensorrt

import refsam_trt
from refsam_engines.plans import PlanRequest, build_plans
from refsam_trt.backends.tensorrt import rtx
from refsam_trt.backends.tensorrt.log import TrtLog
from refsam_trt.bundle.plans import Plans, open_plans
from refsam_trt.doctor import probe
from refsam_trt.errors import (
    PlanDamagedError,
    PlanDeviceError,
    PlanError,
    PlanMemoryError,
    PlanVersionError,
)

REBUILD = "refsam-build BUNDLE --backend tensorrt-rtx --precision fp32 --output PLANS"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("rtx") / "b", split="optimised")


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    fake_cuda.install(monkeypatch)
    module = fake_tensorrt("rtx-1.7.1.116")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    monkeypatch.setattr(probe, "ask", lambda *question: fake_cuda.GPU)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return module


@pytest.fixture
def plans(trt: Any, bundle: Path, tmp_path: Path) -> Plans:
    request = PlanRequest(bundle, tmp_path / "plans", "tensorrt-rtx", "fp32", max_expressions=3)
    built = build_plans(request, lambda line: None)
    trt.calls.clear()
    return built


def logits(engine: refsam_trt.Engine) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    with engine.open_video() as video:
        video.add_expression("a dog")
        frames = generator.integers(0, 256, (4, 24, 40, 3), np.uint8)
        return [result.low_res_logits for frame in frames for result in video.step(frame)]


def test_a_session_on_plans_gives_what_the_graphs_give(plans: Plans, bundle: Path, trt: Any):
    with refsam_trt.load(bundle, plans=plans.folder) as engine:
        assert engine.backend == "tensorrt-rtx"
        ours = logits(engine)
    with refsam_trt.load(bundle, num_threads=1) as other:
        for a, b in zip(ours, logits(other), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    kinds = [call[0] for call in trt.calls]
    assert kinds.index("get_engine_validity") < kinds.index("deserialize_cuda_engine")
    assert ("get_engine_validity", 64) in trt.calls
    # It captures by itself, and has scratch memory of its own.
    contexts = {call for call in trt.calls if call[0] == "create_execution_context"}
    assert contexts == {("create_execution_context", "WHOLE_GRAPH_CAPTURE")}
    assert "set_device_memory" not in kinds


REASONS: dict[str, tuple[type[PlanError], str]] = {
    "VERSION_MISMATCH": (PlanVersionError, "it is of another version of TensorRT-RTX;"),
    "OLD_CUDA_DRIVER": (PlanVersionError, "NVIDIA's driver is too old: update it, or"),
    "OLD_CUDA_RUNTIME": (PlanVersionError, "the CUDA runtime is too old: update it, or"),
    "UNSUPPORTED_CC": (
        PlanDeviceError,
        "TensorRT-RTX does not support this GPU: use another, or",
    ),
    "INSUFFICIENT_GPU_MEMORY": (
        PlanMemoryError,
        "the GPU has too little memory: free some, or",
    ),
    "MALFORMED_ENGINE": (PlanDamagedError, "it is damaged;"),
    "CUDA_ERROR": (PlanDeviceError, "CUDA failed: run refsam-doctor, or"),
}


@pytest.mark.parametrize("name", REASONS)
def test_every_reason_of_the_library_has_its_error(plans: Plans, bundle: Path, trt: Any, name: str):
    kind, meaning = REASONS[name]
    trt.diagnostics = trt.EngineInvalidityDiagnostics[name]
    with pytest.raises(PlanError) as refused:
        refsam_trt.load(bundle, plans=plans.folder)
    assert type(refused.value) is kind
    text = str(refused.value)
    assert text.startswith(f"{plans.folder}/image_encoder.plan: {meaning} build the plans again")
    assert text.endswith(f": {REBUILD}")
    assert ("deserialize_cuda_engine",) not in trt.calls


def test_the_reasons_are_all_that_the_library_has(trt: Any):
    assert set(trt.EngineInvalidityDiagnostics.__members__) == set(REASONS) == set(rtx._REMEDIES)


def test_a_refusal_without_a_reason_means_that_there_is_no_gpu(
    plans: Plans, bundle: Path, trt: Any
):
    trt.diagnostics = 0
    with pytest.raises(PlanDeviceError) as refused:
        refsam_trt.load(bundle, plans=plans.folder)
    assert str(refused.value) == (
        f"{plans.folder}/image_encoder.plan: tensorrt-rtx 1.7.1.116 cannot run it here and does "
        "not say why, as it does without a GPU; run refsam-doctor"
    )


def test_no_room_for_a_context_is_told(
    plans: Plans, bundle: Path, trt: Any, monkeypatch: pytest.MonkeyPatch
):
    trt.has_no_room = True
    create = TrtLog.__init__

    def with_history(log: TrtLog) -> None:
        create(log, [("ERROR", "of another plan, long ago")])

    monkeypatch.setattr(TrtLog, "__init__", with_history)
    with pytest.raises(PlanMemoryError) as refused:
        refsam_trt.load(bundle, plans=plans.folder)
    assert str(refused.value) == (
        "tensorrt-rtx: no execution context (it gave no reason); free GPU memory, close sessions, "
        "or build smaller plans with refsam-build --max-expressions NUMBER"
    )


def test_one_changed_byte_in_any_file_is_refused_before_the_library_sees_it(
    plans: Plans, bundle: Path, trt: Any
):
    for path in sorted(plans.folder.iterdir()):
        kept = path.read_bytes()
        for at in (0, len(kept) // 2, len(kept) - 1):
            raw = bytearray(kept)
            raw[at] ^= 1
            path.write_bytes(raw)
            with pytest.raises(PlanDamagedError, match="build the plans again with refsam-build"):
                refsam_trt.load(bundle, plans=plans.folder)
        path.write_bytes(kept)
    assert trt.calls == []
    assert open_plans(plans.folder) == plans
