"""`refsam-bench` on OpenVINO: by the name of the backend alone."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands_in_process import Commands

from refsam_bench.cli import main
from refsam_bench.speed import precisions
from refsam_bench.speed.precisions import measure_precisions
from refsam_bench.speed.request import SpeedRequest
from refsam_trt.backends.openvino.backend import OpenVinoBackend
from refsam_trt.bundle.shipped import bundle_folder
from refsam_trt.errors import UsageError

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Commands:
    return Commands(monkeypatch, capfd)


def test_accuracy_is_that_of_onnx_runtime(call: Commands) -> None:
    found = {}
    for backend in ("openvino-cpu", "ort-cpu"):
        options = ("--bundle", "nano", "--dataset", "synthetic", "--num-videos", "2", "--json")
        done = call(main, "accuracy", *options, "--backend", backend, "--precision", "fp32")
        assert done.code == 0, done.err
        found[backend] = json.loads(done.out)
        assert (found[backend]["backend"], found[backend]["precision"]) == (backend, "fp32")
    # One pixel more or less in a mask of some thousand.
    expected = pytest.approx(found["ort-cpu"]["j_and_f"], abs=1e-3)
    assert found["openvino-cpu"]["j_and_f"] == expected


def test_speed_times_its_stages(call: Commands) -> None:
    size = ("--frames", "2", "--warmup", "1", "--frame-size", "90", "160", "--threads", "1")
    options = ("--no-reference", "--backend", "openvino-cpu", "--json", *size)
    done = call(main, "speed", bundle_folder("nano"), *options)
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert figures["backend"] == "openvino-cpu"
    assert figures["environment"]["openvino"] != "unknown"
    assert figures["stages"]["image_encoder"]["p50_ms"] > 0


def test_bf16_is_timed_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs no variant of its own; its masks are those of fp32 on a CPU that pretends."""
    request = SpeedRequest(
        Path(bundle_folder("nano")),
        backend="openvino-cpu",
        num_frames=1,
        num_warmup=0,
        num_expressions=1,
        frame_hw=(90, 160),
        num_threads=1,
    )
    if not OpenVinoBackend()._has_bf16:
        with pytest.raises(UsageError, match="nothing to compare on backend openvino-cpu"):
            measure_precisions(request, lambda: None)
        monkeypatch.setattr(
            OpenVinoBackend, "_capabilities", property(lambda self: ["FP32", "BF16"])
        )
        monkeypatch.setattr(OpenVinoBackend, "_check_hint", lambda *_: None)
    assert precisions._rounded("ort-cpu") == []
    measured = measure_precisions(request, lambda: None)
    assert measured.variants == dict.fromkeys(("fp32", "bf16"), "fp32-augmented-optimised")
    assert measured.precisions.keys() == {"fp32", "bf16"}
