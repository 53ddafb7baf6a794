"""Precisions of a bundle timed in turn: which they are, what is said of the quantised one."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import fake_cuda
import pytest
from commands_in_process import Commands
from fake_tensorrt import fake_tensorrt
from quantised import quantised_bundle

from refsam_bench.cli import main
from refsam_bench.speed.precisions import measure_precisions
from refsam_bench.speed.request import SpeedRequest
from refsam_engines.plans import PlanRequest, build_plans
from refsam_trt.bundle.open import open_bundle
from refsam_trt.doctor import probe

SMALL = ("--frames", "2", "--warmup", "1", "--frame-size", "90", "160", "--threads", "1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantised_bundle(tmp_path_factory).bundle.folder


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Commands:
    return Commands(monkeypatch, capfd)


def test_every_precision_is_timed_and_int8_judged(bundle: Path):
    request = SpeedRequest(
        bundle, num_frames=3, num_warmup=1, num_expressions=1, frame_hw=(90, 160), num_threads=1
    )
    frames: list[None] = []
    found = measure_precisions(request, lambda: frames.append(None)).to_json()
    assert len(frames) == 4
    assert found["backend"] == "ort-cpu"
    assert found["bundle_id"] == open_bundle(bundle).bundle_id
    assert found["variants"] == {
        "fp16": "fp16-augmented-optimised",
        "fp32": "fp32-augmented-optimised",
        "int8": "int8-fp32-augmented-optimised",
    }
    assert all(row["num_samples"] == 3 for row in found["precisions"].values())
    (gate,) = found["gates"]
    medians = {name: row["p50_ms"] for name, row in found["precisions"].items()}
    del medians["int8"]
    assert gate["quantised"] == "int8"
    assert gate["next_best"] == min(medians, key=lambda name: medians[name])
    assert gate["is_worth_shipping"] == (gate["speedup"]["p50"] >= 1.15)


def test_the_command_prints_the_verdict(bundle: Path, call: Commands):
    done = call(main, "speed", bundle, "--precisions", *SMALL)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["fp16", "fp32", "int8"]
    assert lines[3].startswith("int8 is ")
    assert lines[3].endswith("worth shipping on this backend")
    assert lines[4].startswith("RANDOM WEIGHTS: ")
    done = call(main, "speed", bundle, "--precisions", "--json", *SMALL)
    assert json.loads(done.out)["gates"][0]["verdict"].startswith("int8 is ")


@pytest.fixture
def plans(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Builds plans on the stand-ins for TensorRT and a GPU."""
    fake_cuda.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("11.4.0.106"))
    monkeypatch.setattr(probe, "ask", lambda *question: fake_cuda.GPU)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def build(precision: str) -> Path:
        target = tmp_path / precision
        return build_plans(PlanRequest(bundle, target, "tensorrt", precision), print).folder

    return build


def test_plans_of_a_gpu_are_judged_too(bundle: Path, plans: Callable[[str], Path], call: Commands):
    folders = [plans(precision) for precision in ("fp16", "int8")]
    given = [word for folder in folders for word in ("--plans", str(folder))]
    small = [*SMALL[:-2], "--expressions", "1"]
    done = call(main, "speed", bundle, "--precisions", *given, "--json", *small)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["backend"] == "tensorrt"
    assert found["variants"] == {
        "fp16": "fp16-augmented-optimised",
        "int8": "int8-fp16-augmented-optimised",
    }
    (gate,) = found["gates"]
    assert (gate["quantised"], gate["next_best"]) == ("int8", "fp16")
    assert gate["is_worth_shipping"] == (gate["speedup"]["p50"] >= 1.15)
    twice = call(main, "speed", bundle, "--precisions", *given[:2], *given[:2], *small)
    same = f"{folders[0]} (tensorrt, fp16)"
    told = f"at least two of a precision each, found {same}, {same}; build them with refsam-build"
    assert (twice.code, told in twice.message) == (2, True), twice.message
    other = call(main, "speed", bundle, "--precisions", *given, "--backend", "ort-cuda", *small)
    assert (other.code, "the plans are for tensorrt; leave it out" in other.message) == (2, True)
    alone = call(main, "speed", bundle, *given, *small)
    assert alone.code == 2
    assert "--plans is of --precisions; give both or none" in alone.message


def test_a_single_int8_variant_is_timed_as_any_other(bundle: Path, call: Commands):
    name = "int8-fp32-augmented-optimised"
    done = call(main, "speed", bundle, "--variant", name, "--no-reference", "--json", *SMALL)
    assert done.code == 0, done.err
    assert json.loads(done.out)["variant"] == name


def test_what_has_nothing_to_compare_is_refused(
    bundle: Path, call: Commands, monkeypatch: pytest.MonkeyPatch
):
    done = call(main, "speed", bundle, "--precisions", "--variant", "x")
    assert (done.code, done.message) == (
        2,
        "refsam-bench: --precisions times all of them: leave --variant out; see refsam-bench speed "
        "--help",
    )
    refused = dict.fromkeys(("fp16", "int8"), "as it may be")
    monkeypatch.setattr("refsam_bench.speed.precisions.REFUSED_PRECISIONS", {"ort-cpu": refused})
    done = call(main, "speed", bundle, "--precisions")
    assert (done.code, done.message) == (
        2,
        f"refsam-bench: {bundle}: nothing to compare on backend ort-cpu: the bundle has "
        "fp16, fp32, int8; export or quantise it in another precision",
    )
