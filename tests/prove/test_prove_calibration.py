"""The steps of `make prove` about calibration: what they run, and when they fail."""

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from refsam_calibration.clips import read_clips
from refsam_calibration.gate.judge import Judgement
from refsam_prove import exports
from refsam_prove.quantised import calibration as prove_calibration
from refsam_prove.quantised.agreement import measure_agreement
from refsam_prove.quantised.calibration import (
    calibrated_figures,
    forms,
    gate_failures,
    memory,
    memory_failures,
)
from refsam_prove.quantised.forms import calibration_peak_mib, compare_forms
from refsam_prove.steps import STEPS
from refsam_trt.command.in_process import in_process
from refsam_trt.errors import AccuracyGateError

BOTH = ("fp32", "fp16")


def test_memory_that_grows_with_the_frames_is_a_failure():
    assert memory_failures("nano", {16: 1000.0, 512: 1049.0}, None) == []
    (told,) = memory_failures("nano", {16: 1000.0, 512: 1051.0}, None)
    assert told == "nano: 1051 MiB with 512 frames, 1000 MiB with 16: grew by more than 5%"


def test_memory_beyond_the_limit_is_a_failure():
    assert memory_failures("vitb", {4: 6100.0, 16: 6144.0}, 6144.0) == []
    (told,) = memory_failures("vitb", {4: 6100.0, 16: 6145.0}, 6144.0)
    assert told == "vitb: 6145 MiB, at most 6144 MiB allowed"


def test_each_count_of_frames_is_measured_in_a_process_of_its_own(monkeypatch):
    calls = []

    def run(*call):
        calls.append(call)
        return 100.0 + len(calls)

    monkeypatch.setattr(prove_calibration, "in_process", run)
    record = memory("nano", 16, 512)
    assert calls == [(calibration_peak_mib, "nano", n) for n in (16, 512)]
    assert record["peak_mib"] == {"16": 101.0, "512": 102.0}
    assert record["growth"] == pytest.approx(102 / 101)
    assert record["failures"] == []


def test_the_peak_is_that_of_a_calibration():
    assert 100 < in_process(calibration_peak_mib, "tiny", 4) < 4000


def test_forms_are_measured_in_a_process_of_their_own(monkeypatch):
    monkeypatch.setattr(prove_calibration, "in_process", lambda *call: call)
    assert forms("vitb", 6)["forms"] == (compare_forms, "vitb", 6)


FOUND = {
    "search": {"share": 0.96},
    "verified": {"drop_points": 0.5, "reference_j_and_f": 0.8},
    "ranges_file": "r.json",
}
KERNELS = Judgement(
    num_layers=1, content_sha256="", reference_j_and_f=0.8, j_and_f=0.796, mask_iou=0.99, worst=()
)


@pytest.mark.parametrize(
    ("part", "figures", "told"),
    [
        ("search", {"share": 0.89}, "nano: 89.0% of the linear FLOPs in int8"),
        ("verified", {"drop_points": 0.51}, "nano: 0.51 points of J&F lost"),
        ("kernels", {"mask_iou": 0.989}, "nano: mask IoU 0.9890 between integer kernels and fake"),
        ("kernels", {"j_and_f": 0.794}, "nano: the integer kernels lose 0.60 points of J&F"),
    ],
)
def test_what_the_issue_asks_of_nano_is_a_failure_where_it_does_not_hold(part, figures, told):
    assert gate_failures(FOUND, KERNELS) == []
    changed = {**FOUND, part: {**FOUND.get(part, {}), **figures}}
    kernels = msgspec.structs.replace(KERNELS, **figures) if part == "kernels" else KERNELS
    (failure,) = gate_failures(changed, kernels)
    assert failure.startswith(told)


@pytest.mark.parametrize("passes", [True, False])
def test_the_model_that_ships_is_exported_quantised_and_compared(monkeypatch, tmp_path, passes):
    calls, exported = [], []
    manifest = SimpleNamespace(source="source.safetensors", preset="nano")
    shipped = SimpleNamespace(bundle_id="its id", manifest=manifest, path=lambda n: tmp_path / n)
    monkeypatch.setattr(prove_calibration, "bundle_folder", lambda name: name)
    monkeypatch.setattr(prove_calibration, "open_bundle", lambda folder: shipped)
    monkeypatch.setattr(exports, "export_bundle", lambda request, say: exported.append(request))

    def run(*call):
        calls.append(call)
        if not passes:
            raise AccuracyGateError("verified: too much lost")
        return FOUND if call[0] is calibrated_figures else KERNELS

    monkeypatch.setattr(prove_calibration, "in_process", run)
    record = prove_calibration.gate()
    (request,) = exported
    assert (request.checkpoint, request.precisions) == (tmp_path / manifest.source, BOTH)
    calibration = calls[0][1]
    assert (calibration.min_share, calibration.max_drop_points) == (0.9, 0.5)
    assert calibration.bundle == request.output
    if not passes:
        assert record["failures"] == ["nano: the gate says no: verified: too much lost"]
        return
    assert calls[1:] == [(measure_agreement, calibration.output, Path("r.json"), 200)]
    assert record["failures"] == []
    assert read_clips(prove_calibration.CLIPS).verify.num_videos == prove_calibration.NUM_VERIFIED


def test_the_steps_are_those_of_the_issue():
    whats, presets = ("memory", "forms"), ("nano", "vitb")
    names = {f"calibration-{what}-{preset}" for what in whats for preset in presets}
    names.add("calibration-nano")
    assert names == set(prove_calibration.STEPS) <= set(STEPS)
    assert prove_calibration.VITB_LIMIT_MIB == 6144
