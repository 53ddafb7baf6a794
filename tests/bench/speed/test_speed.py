"""Speed of engine and reference: every field, consistent sums, equal masks. Never how fast."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import exported
from heavy_modules import heavy_modules_after

import refsam_bench.speed.measure as speed
import refsam_bench.trackers.reference_loop as reference_loop
from refsam_bench.speed.measure import measure_speed
from refsam_bench.speed.memory import peak_mib, peak_rss_mib
from refsam_bench.speed.request import SpeedRequest, expressions
from refsam_export.parity.compare import MIN_MASK_IOU, mask_iou
from refsam_trt.command.in_process import in_process
from refsam_trt.errors import BackendError, BundleError, UsageError

FRAME_HW = (90, 160)
NUM_FRAMES, NUM_WARMUP, NUM_EXPRESSIONS = 3, 1, 2
SUMMARY = {f"{name}_ms" for name in ("mean", "min", "p50", "p90", "p95", "p99", "max")}
STAGES = ("preprocess", "upload", "image_encoder", "decoder_step", "download", "postprocess")


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> SpeedRequest:
    return SpeedRequest(
        exported(tmp_path_factory, "tiny"),
        num_frames=NUM_FRAMES,
        num_warmup=NUM_WARMUP,
        num_expressions=NUM_EXPRESSIONS,
        frame_hw=FRAME_HW,
        num_threads=1,
    )


@dataclass
class Run:
    """One measured run, and the masks that both sides made in it, frame by frame."""

    figures: dict[str, Any] = field(default_factory=dict)
    engine: list[list[np.ndarray]] = field(default_factory=list)
    reference: list[list[np.ndarray]] = field(default_factory=list)
    num_progress: int = 0

    def progress(self) -> None:
        self.num_progress += 1


@pytest.fixture(scope="module")
def run(request_: SpeedRequest) -> Run:
    run = Run()
    engine_frame, loop_step = speed._engine_frame, reference_loop.ReferenceLoop.step

    def keep_engine(*arguments: Any) -> list[np.ndarray]:
        run.engine.append(engine_frame(*arguments))
        return run.engine[-1]

    def keep_reference(*arguments: Any) -> list[np.ndarray]:
        run.reference.append(loop_step(*arguments))
        return run.reference[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "_engine_frame", keep_engine)
        patch.setattr(reference_loop.ReferenceLoop, "step", keep_reference)
        run.figures = measure_speed(request_, run.progress).to_json()
    return run


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "in_process", lambda run, side, request: 1.0)


class TestFigures:
    def test_what_was_measured(self, run: Run, request_: SpeedRequest) -> None:
        figures = run.figures
        manifest = json.loads((request_.bundle / "manifest.json").read_text())
        assert figures["bundle_id"] == (request_.bundle / "manifest.sha256").read_text().strip()
        assert figures["variant"] in manifest["variants"]
        assert figures["backend"] == "ort-cpu"
        assert figures["random_weights"] is True
        assert figures["num_warmup"] == NUM_WARMUP
        assert figures["num_expressions"] == NUM_EXPRESSIONS
        assert figures["frame_hw"] == list(FRAME_HW)
        assert "frame in host memory to masks in host memory" in figures["scope"]
        assert json.loads(json.dumps(figures, allow_nan=False)) == figures

    def test_where_it_was_measured(self, run: Run) -> None:
        environment = run.figures["environment"]
        assert environment["num_threads"] == 1
        assert environment["num_cpus"] >= 1
        for name in ("machine", "python", "refsam-trt", "onnxruntime", "torch", "numpy"):
            assert environment[name]
        assert isinstance(environment["processor"], str)

    def test_every_stage_has_one_sample_per_frame(self, run: Run) -> None:
        assert tuple(run.figures["stages"]) == STAGES
        sides = [run.figures["engine"], run.figures["reference"]]
        for row in [*run.figures["stages"].values(), *sides]:
            assert row["num_samples"] == NUM_FRAMES
            assert row.keys() - {"fps"} == SUMMARY | {"num_samples"}
            ordered = [row[f"{name}_ms"] for name in ("min", "p50", "p90", "p95", "p99", "max")]
            assert ordered == sorted(ordered)
            assert row["min_ms"] <= row["mean_ms"] <= row["max_ms"]
            assert row["max_ms"] > 0

    def test_the_stages_make_up_the_frame(self, run: Run) -> None:
        parts = sum(row["mean_ms"] for row in run.figures["stages"].values())
        assert parts <= run.figures["engine"]["mean_ms"] * (1 + 1e-9)
        assert parts >= 0.5 * run.figures["engine"]["mean_ms"]

    def test_rates_and_ratios_follow_from_the_durations(self, run: Run) -> None:
        engine, reference = run.figures["engine"], run.figures["reference"]
        for side in (engine, reference):
            assert math.isclose(side["fps"] * side["p50_ms"], 1000)
        ratio = run.figures["speedup"]
        assert ratio["p10"] <= ratio["p50"] <= ratio["p90"]
        assert ratio["p90"] <= reference["max_ms"] / engine["min_ms"] * (1 + 1e-9)
        assert ratio["p10"] >= reference["min_ms"] / engine["max_ms"] * (1 - 1e-9)

    def test_progress_is_told_of_every_frame(self, run: Run) -> None:
        assert run.num_progress == NUM_FRAMES + NUM_WARMUP


class TestMasks:
    def test_both_sides_make_the_same(self, run: Run) -> None:
        assert len(run.engine) == len(run.reference) == NUM_FRAMES + NUM_WARMUP
        found = []
        for engine, reference in zip(run.engine, run.reference, strict=True):
            assert len(engine) == len(reference) == NUM_EXPRESSIONS
            for one, other in zip(engine, reference, strict=True):
                assert one.shape == other.shape == FRAME_HW
                assert one.dtype == other.dtype == np.bool_
                found.append(mask_iou(one, other))
        assert min(found) == run.figures["min_mask_iou"] >= MIN_MASK_IOU

    def test_they_are_worth_comparing(self, run: Run) -> None:
        for masks in run.engine:
            assert all(0.02 < mask.mean() < 0.98 for mask in masks)
            assert not np.array_equal(*masks)
        assert not np.array_equal(run.engine[0][0], run.engine[-1][0])

    @pytest.mark.usefixtures("without_memory")
    def test_a_difference_shows_in_the_figure(
        self, request_: SpeedRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = reference_loop.ReferenceLoop.step

        def without_first(self: Any, *arguments: Any) -> list[np.ndarray]:
            first, *others = step(self, *arguments)
            return [np.zeros_like(first), *others]

        monkeypatch.setattr(reference_loop.ReferenceLoop, "step", without_first)
        assert measure_speed(request_, lambda: None).min_mask_iou == 0


@pytest.mark.usefixtures("without_memory")
class TestOptions:
    def test_without_the_reference_and_without_warm_up(self, request_: SpeedRequest) -> None:
        changed = dataclasses.replace(request_, with_reference=False, num_warmup=0)
        figures = measure_speed(changed, lambda: None).to_json()
        for name in ("reference", "speedup", "min_mask_iou"):
            assert figures[name] is None
        assert figures["peak_memory_mib"] == {"engine": 1.0, "reference": None}
        assert figures["engine"]["num_samples"] == NUM_FRAMES

    @pytest.mark.parametrize(
        ("change", "error", "text"),
        [
            ({"backend": "abacus"}, BackendError, "no backend 'abacus'; it has: auto"),
            ({"variant": "int8"}, UsageError, "no variant 'int8'; it has: fp32-augmented"),
            ({"bundle": Path("absent")}, BundleError, "absent: no such folder"),
        ],
    )
    def test_what_cannot_be_measured(
        self, change: dict[str, Any], error: type[Exception], text: str, request_: SpeedRequest
    ) -> None:
        with pytest.raises(error, match=text):
            measure_speed(dataclasses.replace(request_, **change), lambda: None)


class TestMemory:
    def test_each_side_in_a_process_of_its_own(self, run: Run) -> None:
        """PyTorch, which this process holds too, is more than the whole engine."""
        peaks = run.figures["peak_memory_mib"]
        assert peaks.keys() == {"engine", "reference"}
        assert 20 < peaks["engine"] < min(peaks["reference"], peak_rss_mib())

    def test_the_request_reaches_that_process(self, request_: SpeedRequest) -> None:
        """Frames of 5 MiB, 44 MiB while they are drawn."""
        large = dataclasses.replace(request_, frame_hw=(1200, 1600), num_expressions=1)
        assert in_process(peak_mib, "engine", large) > in_process(peak_mib, "engine", request_) + 40

    def test_the_engine_side_never_sees_torch(self, request_: SpeedRequest) -> None:
        assert in_process(heavy_modules_after, peak_mib, "engine", request_) == []

    def test_a_failure_in_that_process_is_told(self, request_: SpeedRequest) -> None:
        broken = dataclasses.replace(request_, bundle=Path("absent"))
        with pytest.raises(BundleError, match="absent: no such folder"):
            in_process(peak_mib, "engine", broken)


def test_expressions_differ() -> None:
    assert len(set(expressions(30))) == 30
