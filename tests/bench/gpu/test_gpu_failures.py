"""`refsam-bench gpu` where things fail: each failure is recorded, and stops nothing else."""

import json
import sys
from pathlib import Path
from typing import Any

import gpu_stand_ins
import numpy as np
import pytest
from exported import exported
from fake_tensorrt import fake_tensorrt
from gpu_stand_ins import run_here

from refsam_bench.commands.gpu import record_lines
from refsam_bench.gpu import pytorch_checks
from refsam_bench.gpu.measure import measure_gpu
from refsam_bench.gpu.pytorch import COMPILED, EAGER
from refsam_bench.gpu.request import GpuRequest, Job
from refsam_bench.gpu.speed import run_race
from refsam_bench.gpu.steps import StepRunner
from refsam_export.parity.figures import BOUNDS, Bounds
from refsam_trt.doctor import probe

State = dict[str, str]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory, "tiny")


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def fail(*_: object) -> None:
        raise RuntimeError("no compiler here")

    found = gpu_stand_ins.install(monkeypatch, tmp_path / "cache")
    monkeypatch.setitem(pytorch_checks.MAKERS, COMPILED, ("fp16", fail))
    return found


def measured(bundle: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "precisions": ("fp32",),
        "num_frames": 2,
        "num_warmup": 0,
        "frame_hw": (48, 64),
        "num_videos": 0,
        "commit": "abc",
    }
    (folder / "work").mkdir()
    request = GpuRequest(folder / "gpu.json", bundles=(bundle,), **{**fields, **changes})
    record = measure_gpu(request, folder / "work", lambda line: None, run_here)
    assert json.loads(request.output.read_text()) == record
    return record


def states(steps: dict[str, Any]) -> State:
    return {name: step["state"] for name, step in steps.items()}


def test_an_engine_that_cannot_run_stops_nothing_else(trt: Any, bundle: Path, tmp_path: Path):
    trt.fails_to_run = True
    record = measured(bundle, tmp_path)
    (subject,) = record["subjects"]
    cases = subject["cases"]
    assert states(cases["tensorrt-fp32"]["steps"]) == {
        "build": "done",
        "memory": "failed",
        "open": "done",
        "validity": "done",
        "self-test": "failed",
        "layers": "failed",
        "parity": "failed",
        "latency": "failed",
    }
    assert set(states(cases["ort-cuda-fp32"]["steps"]).values()) == {"done"}
    race = subject["steps"]["race"]["figures"]
    assert list(race["racers"]) == [EAGER, "ort-cuda-fp32"]
    assert subject["steps"][f"parity {COMPILED}"] == {
        "state": "skipped",
        "reason": "it cannot be loaded",
    }
    told = "\n".join(record["failures"])
    assert f"load {COMPILED}: RuntimeError: no compiler here" in told
    assert "tensorrt-fp32: self-test: BackendError: " in told
    assert "could not be run by tensorrt" in told
    assert [line for line in record_lines(record) if line.startswith("failed: ")]


def test_a_plan_that_cannot_be_built_has_no_other_steps(trt: Any, bundle: Path, tmp_path: Path):
    trt.fails_to_build = True
    (subject,) = measured(bundle, tmp_path)["subjects"]
    steps = subject["cases"]["tensorrt-fp32"]["steps"]
    assert states(steps) == {"build": "failed"}
    assert steps["build"]["error"]["type"] == "PlanBuildError"
    assert "no kernel fits" in steps["build"]["error"]["text"]
    assert "load tensorrt-fp32" not in subject["steps"]
    assert subject["steps"]["race"]["state"] == "done"


def test_what_the_library_thinks_of_plans_is_asked_before_we_refuse_them(
    trt: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As it should be on Hopper: TensorRT-RTX opens and builds, and runs nothing."""
    rtx = fake_tensorrt("rtx-1.7.1.116")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    rtx.diagnostics = rtx.EngineInvalidityDiagnostics.UNSUPPORTED_CC
    opened = {"version": "1.7.1.116", "gpu": "Some GPU"}
    answers = gpu_stand_ins.answer

    def answer(*question: str) -> dict[str, Any]:
        return opened if question == ("tensorrt", "tensorrt-rtx") else answers(*question)

    monkeypatch.setattr(probe, "ask", answer)
    record = measured(bundle, tmp_path, backends=("tensorrt-rtx",))
    (subject,) = record["subjects"]
    steps = subject["cases"]["tensorrt-rtx-fp32"]["steps"]
    verdict = {"validity": "INVALID", "diagnostics": int(rtx.diagnostics)}
    assert steps["validity"]["figures"]["verdicts"] == dict.fromkeys(
        ("decoder_step", "image_encoder", "text_encoder"), verdict
    )
    assert steps["self-test"]["error"]["type"] == "PlanDeviceError"
    assert subject["steps"]["load tensorrt-rtx-fp32"]["state"] == "failed"
    assert list(subject["steps"]["race"]["figures"]["racers"]) == [EAGER]


def test_a_precision_that_a_bundle_lacks_is_told(trt: Any, bundle: Path, tmp_path: Path):
    record = measured(bundle, tmp_path, precisions=("fp16",), backends=("ort-cuda",))
    steps = record["subjects"][0]["cases"]["ort-cuda-fp16"]["steps"]
    assert states(steps) == {
        "memory": "failed",
        "open": "failed",
        "parity": "skipped",
        "latency": "skipped",
    }
    assert "no variant fp16-augmented-optimised" in steps["open"]["error"]["text"]
    assert steps["parity"]["reason"] == "the case cannot be opened"


def test_parity_beyond_its_bounds_is_a_failure_with_its_figures(
    trt: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(BOUNDS, "fp32", Bounds(0.0, 1.1))
    record = measured(bundle, tmp_path, backends=("ort-cuda",))
    (subject,) = record["subjects"]
    error = subject["cases"]["ort-cuda-fp32"]["steps"]["parity"]["error"]
    assert error["type"] == "ParityError"
    assert error["text"].startswith("parity FAILED: worst relative error ")
    assert "per graph {'decoder_step': {'low_res_logits'" in error["text"]
    told = subject["steps"][f"parity {EAGER}"]["error"]["text"]
    assert told.startswith(f"{EAGER}: mask IoU ")
    assert "at least 1.1 expected; worst relative error over the chain" in told


def test_a_bundle_that_cannot_be_opened_ends_its_subject_alone(
    trt: Any, bundle: Path, tmp_path: Path
):
    (tmp_path / "work").mkdir()
    request = GpuRequest(
        tmp_path / "gpu.json",
        bundles=(tmp_path / "absent", bundle),
        precisions=("fp32",),
        backends=("ort-cuda",),
        num_frames=1,
        num_warmup=0,
        frame_hw=(48, 64),
        num_videos=0,
    )
    record = measure_gpu(request, tmp_path / "work", lambda line: None, run_here)
    absent, there = record["subjects"]
    assert states(absent["steps"]) == {"bundle": "failed", "reference": "skipped"}
    assert absent["cases"]["ort-cuda-fp32"]["steps"] == {}
    assert there["steps"]["race"]["state"] == "done"
    assert any("nothing measured" in line for line in record_lines(record))


def test_nothing_is_begun_when_time_is_over(trt: Any, bundle: Path, tmp_path: Path):
    record = measured(bundle, tmp_path, limit_s=1e-9)
    (subject,) = record["subjects"]
    assert subject["steps"] == {"bundle": {"state": "skipped", "reason": "out of time (--limit-s)"}}
    assert record["failures"] == []


def test_a_process_that_cannot_be_started_is_a_failed_step(trt: Any, bundle: Path, tmp_path: Path):
    def run(job: Job, *_: object) -> None:
        raise OSError("no more processes")

    request = GpuRequest(tmp_path / "gpu.json", bundles=(bundle,))
    record = measure_gpu(request, tmp_path, lambda line: None, run)
    assert record["failures"] == [f"{bundle.name}: bundle: OSError: no more processes"]


class Racer:
    """Answers with an empty mask; fails at the frame with the number `last`."""

    def __init__(self, name: str, order: list[str], last: int = 99) -> None:
        self.name, self._order, self._last, self._num = name, order, last, 0

    def __call__(self, frame: np.ndarray) -> list[np.ndarray]:
        if self._num == self._last:
            raise ValueError("fell")
        self._num += 1
        self._order.append(self.name)
        return [np.zeros(frame.shape[:2], bool)]


def test_who_fails_in_the_race_leaves_it_and_each_frame_is_begun_by_another():
    order: list[str] = []
    events: list[dict[str, Any]] = []
    lasts = {"a": 99, "b": 2, EAGER: 99}
    racers = {name: Racer(name, order, last) for name, last in lasts.items()}
    request = GpuRequest(Path("x"), presets=("tiny",), num_frames=3, num_warmup=1, frame_hw=(9, 16))
    found = run_race(racers, request, StepRunner(events.append))
    assert order == ["a", "b", EAGER, "b", EAGER, "a", EAGER, "a", EAGER, "a"]
    assert [(event["step"], event["state"]) for event in events] == [("race of b", "failed")]
    assert events[0]["error"] == {"type": "ValueError", "text": "fell"}
    assert list(found["racers"]) == ["a", EAGER]
    assert {racer["num_samples"] for racer in found["racers"].values()} == {3}
    assert found["baseline"] == EAGER


def test_without_the_baseline_nothing_is_compared_with_it():
    request = GpuRequest(Path("x"), presets=("tiny",), num_frames=2, num_warmup=0, frame_hw=(9, 16))
    found = run_race({"a": Racer("a", [])}, request, StepRunner(lambda event: None))
    assert found["baseline"] is None
    assert "times_as_fast" not in found["racers"]["a"]


def test_numbers_that_json_lacks_are_text():
    events: list[dict[str, Any]] = []
    StepRunner(events.append).run("a", lambda: {"worst": float("inf"), "rows": [(1, float("nan"))]})
    assert events[-1]["figures"] == {"worst": "inf", "rows": [[1, "nan"]]}
