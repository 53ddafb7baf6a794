"""`refsam-bench gpu`, driven as a whole on stand-ins for CUDA, TensorRT and ONNX Runtime on CUDA.

Only structure counts here: that every step runs, on what, and what becomes of failures.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_stand_ins
import pytest
from commands_in_process import Commands
from gpu_stand_ins import run_here

from refsam_bench import cli
from refsam_bench.commands.gpu import record_lines
from refsam_bench.gpu import measure
from refsam_bench.gpu.machine import require_gpu
from refsam_bench.gpu.measure import measure_gpu
from refsam_bench.gpu.request import GpuRequest
from refsam_trt.bundle.open import open_bundle
from refsam_trt.doctor import probe
from refsam_trt.errors import BackendError, OutputError, UsageError

CASES = ["tensorrt-fp32", "tensorrt-fp16", "ort-cuda-fp32", "ort-cuda-fp16"]
TORCH = ["pytorch-fp32-eager", "pytorch-fp16-compiled"]
NUM_FRAMES, NUM_VIDEOS = 3, 1


def small(output: Path, **changes: Any) -> GpuRequest:
    """As little of everything as there can be; bf16 has no stand-in."""
    fields: dict[str, Any] = {
        "presets": ("tiny",),
        "precisions": ("fp32", "fp16"),
        "num_frames": NUM_FRAMES,
        "num_warmup": 1,
        "frame_hw": (48, 64),
        "num_videos": NUM_VIDEOS,
        "commit": "abc",
    }
    return GpuRequest(output, **{**fields, **changes})


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path]]:
    """A whole run, and its file."""
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as monkeypatch:
        gpu_stand_ins.install(monkeypatch, folder / "cache")
        output, work = folder / "gpu.json", folder / "work"
        work.mkdir()
        lines: list[str] = []
        yield measure_gpu(small(output), work, lines.append, run_here), output


@pytest.fixture
def record(campaign: tuple[dict[str, Any], Path]) -> dict[str, Any]:
    return campaign[0]


def figures(entry: dict[str, Any], step: str) -> dict[str, Any]:
    assert entry["steps"][step]["state"] == "done", entry["steps"][step]
    return entry["steps"][step]["figures"]


def test_nothing_fails_and_the_file_is_the_record(campaign: tuple[dict[str, Any], Path]):
    record, output = campaign
    assert record["failures"] == []
    assert json.loads(output.read_text()) == record
    machine = record["machine"]
    assert (machine["commit"], machine["device"]["name"]) == ("abc", "Some GPU")
    assert machine["onnxruntime"]["version"] == "1.31.1"
    assert {"torch", "numpy", "onnx"} <= machine["packages"].keys()


def test_an_absent_backend_is_told_with_its_reason_and_has_no_cases(record: dict[str, Any]):
    assert record["backends"]["tensorrt-rtx"] == {
        "works": False,
        "reason": gpu_stand_ins.NO_RTX,
    }
    (subject,) = record["subjects"]
    assert list(subject["cases"]) == CASES
    assert f"absent: tensorrt-rtx: {gpu_stand_ins.NO_RTX}" in record_lines(record)


def test_every_case_is_held_to_the_reference(campaign: tuple[dict[str, Any], Path]):
    record, folder = campaign[0], campaign[1].parent
    (subject,) = record["subjects"]
    assert figures(subject, "bundle")["random_init_seed"] == 0
    (made,) = folder.glob("work/*/bundle")
    assert open_bundle(made).manifest.parity == {}  # nobody may take it for a proven one
    assert figures(subject, "reference")["num_frames"] == 3
    for name, bound in (("fp32", 1e-4), ("fp16", 5e-3)):
        for backend in ("tensorrt", "ort-cuda"):
            parity = figures(subject["cases"][f"{backend}-{name}"], "parity")
            assert parity["backend"] == backend
            assert parity["passed"]
            assert parity["max_graph_error"] <= bound
            assert set(parity["graphs"]) == {"image_encoder", "text_encoder", "decoder_step"}
            assert len(parity["chain"]) == 3 * 2 + 1  # the third expression joins late
    for name, bound in zip(TORCH, (0.999, 0.98), strict=True):
        assert figures(subject, f"parity {name}")["min_mask_iou"] >= bound


def test_plans_are_built_tested_and_profiled(record: dict[str, Any]):
    (subject,) = record["subjects"]
    for precision, tolerance in (("fp32", 1e-3), ("fp16", 2e-2)):
        case = subject["cases"][f"tensorrt-{precision}"]
        built = figures(case, "build")
        assert built["limits"]["max_expressions"] == 3
        assert built["graphs"]["image_encoder"]["activation_bytes"] == 1024
        assert min(built["plan_bytes"].values()) > 0
        assert figures(case, "validity") == {"verdicts": None}
        tested = figures(case, "self-test")
        allowed = {"image_encoder": tolerance, "text_encoder": 1e-3, "decoder_step": tolerance}
        assert tested["tolerances"] == allowed
        errors = [e for graph in tested["errors"].values() for e in graph.values()]
        assert len(errors) > 6
        assert max(errors) <= tolerance
        for layers in figures(case, "layers")["graphs"].values():
            assert (layers["num_engine_layers"], layers["activation_bytes"]) == (7, 2048)
            assert layers["num_attention_kernels"] == 1
            assert layers["slowest"] == [
                {"layer": "slow", "mean_ms": 1.5},
                {"layer": "fast", "mean_ms": 0.25},
            ]
            assert layers["mean_ms"] == 1.75


def test_backends_without_plans_have_no_steps_of_plans(record: dict[str, Any]):
    (subject,) = record["subjects"]
    steps = subject["cases"]["ort-cuda-fp16"]["steps"]
    assert list(steps) == ["memory", "open", "parity", "latency", "accuracy"]


def test_memory_latency_and_accuracy_of_every_case(record: dict[str, Any]):
    (subject,) = record["subjects"]
    for name in CASES:
        case = subject["cases"][name]
        assert figures(case, "memory").keys() == {"loaded_mib", "running_mib", "num_expressions"}
        latency = figures(case, "latency")["graphs"]
        assert {graph["num_samples"] for graph in latency.values()} == {30}
        assert latency["decoder_step"]["inputs"]["has_track"] == [3]
        assert latency["image_encoder"]["inputs"]["image"][0] == 1
        assert 0 <= figures(case, "accuracy")["j_and_f"] <= 1
    assert figures(subject, "accuracy")["num_videos"] == NUM_VIDEOS


def test_all_race_against_pytorch(record: dict[str, Any]):
    (subject,) = record["subjects"]
    race = figures(subject, "race")
    assert list(race["racers"]) == [*TORCH, *CASES]
    assert race["baseline"] == TORCH[0]
    for name, racer in race["racers"].items():
        assert racer["num_samples"] == NUM_FRAMES
        assert racer["p50_ms"] <= racer["p95_ms"] <= racer["max_ms"]
        assert racer["fps"] == pytest.approx(1e3 / racer["p50_ms"])
        assert racer["min_mask_iou"] >= (0.999 if "fp32" in name else 0.98)
        assert racer["times_as_fast"].keys() == {"p10", "p50", "p90"}
    assert race["racers"][TORCH[0]]["times_as_fast"]["p50"] == 1


def test_the_text_tells_figures_and_random_weights(record: dict[str, Any]):
    lines = record_lines(record)
    assert lines[0] == "Some GPU, compute capability 8.7, driver for CUDA 13.0, commit abc"
    assert "tiny: RANDOM WEIGHTS, masks and J&F mean nothing" in lines
    (line,) = [line for line in lines if line.strip().startswith("tensorrt-fp16")]
    for part in ("ms (p95", "frames/s", "parity ", "MiB", "activations 0 MB", "J&F "):
        assert part in line


def test_without_a_gpu_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setattr(probe, "ask", lambda *question: {"error": "not found (libcuda.so.1)"})
    output = tmp_path / "gpu.json"
    done = Commands(monkeypatch, capfd)(cli.main, "gpu", "--preset", "tiny", "--output", output)
    assert (done.code, done.out) == (2, "")
    assert done.message == (
        "refsam-bench: no NVIDIA GPU here: CUDA driver not found (libcuda.so.1); run this command "
        "on a machine that has one (refsam-bench speed, parity, precision and accuracy need none)"
    )
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(probe, "ask", lambda *question: {"driver_version": "13.0", "devices": []})
    with pytest.raises(BackendError, match="CUDA driver has no device; run this command on a"):
        require_gpu()


def test_the_command_prints_the_record_and_ends_with_1_if_a_step_failed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
):
    gpu_stand_ins.install(monkeypatch, tmp_path / "cache")
    asked: list[GpuRequest] = []

    def measured(request: GpuRequest, work: Path, report: Any) -> dict[str, Any]:
        asked.append(request)
        assert work.is_dir()
        return {"failures": ["tiny: bundle: OSError: full"]}

    monkeypatch.setattr(measure, "measure_gpu", measured)
    options = ["--preset", "tiny,vitb", "--backend", "ort-cuda", "--frames", 7, "--json"]
    output = tmp_path / "gpu.json"
    done = Commands(monkeypatch, capfd)(cli.main, "gpu", *options, "--output", output)
    assert done.code == 1
    assert json.loads(done.out) == {"failures": ["tiny: bundle: OSError: full"]}
    assert asked == [
        GpuRequest(output, presets=("tiny", "vitb"), backends=("ort-cuda",), num_frames=7)
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"presets": ()}, "nothing to measure; give a bundle, or --preset (vitb, vith, nano)"),
        (
            {"precisions": ("fp32", "int8")},
            "--precision int8: choose among fp32, fp16, bf16, separated by commas",
        ),
        (
            {"backends": ("ort-cpu",)},
            "--backend ort-cpu: choose among tensorrt, tensorrt-rtx, ort-cuda, separated by commas",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(UsageError) as refused:
        small(tmp_path / "gpu.json", **changes)
    assert str(refused.value) == message


def test_a_place_that_cannot_hold_the_record_is_refused(tmp_path: Path):
    with pytest.raises(OutputError, match=r"gpu\.json: the folder .*absent does not exist; create"):
        measure_gpu(small(tmp_path / "absent" / "gpu.json"), tmp_path, print, run_here)
    with pytest.raises(OutputError, match="found a folder or a device, expected a file"):
        measure_gpu(small(tmp_path), tmp_path, print, run_here)
