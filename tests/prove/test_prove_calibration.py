"""The steps of `make prove` about calibration: what they run, and when they fail."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from refsam_calibration.cli import command
from refsam_calibration.clips import read_clips
from refsam_prove.quantised import calibration as prove_calibration
from refsam_prove.quantised.calibration import forms, gate_failures, memory, memory_failures
from refsam_prove.steps import STEPS

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
    commands = []

    def run(command, text):
        commands.append(command[1:])
        return json.dumps({"peak_mib": 100.0 + len(commands)})

    monkeypatch.setattr(prove_calibration.subprocess, "check_output", run)
    record = memory("nano", 16, 512)()
    assert commands == [["-m", "refsam_prove.quantised.memory", "nano", n] for n in ("16", "512")]
    assert record["peak_mib"] == {"16": 101.0, "512": 102.0}
    assert record["growth"] == pytest.approx(102 / 101)
    assert record["failures"] == []


def test_the_program_prints_its_peak():
    command = [sys.executable, "-m", "refsam_prove.quantised.memory", "tiny", "4"]
    found = json.loads(subprocess.check_output(command, text=True))
    assert found["num_frames"] == 4
    assert 100 < found["peak_mib"] < 4000


def test_forms_are_measured_in_a_process_of_their_own(monkeypatch):
    commands = []

    def run(command, text):
        commands.append(command[1:])
        return json.dumps({"minmax": {"relative_error": 0.5}})

    monkeypatch.setattr(prove_calibration.subprocess, "check_output", run)
    record = forms("vitb", 6)()
    assert commands == [["-m", "refsam_prove.quantised.forms", "vitb", "6"]]
    assert record["forms"] == {"minmax": {"relative_error": 0.5}}


FOUND = {
    "search": {"share": 0.96},
    "verified": {"drop_points": 0.5, "reference_j_and_f": 0.8},
    "ranges_file": "r.json",
}
KERNELS = {"mask_iou": 0.99, "j_and_f": 0.796}


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
    kernels = {**KERNELS, **figures} if part == "kernels" else KERNELS
    (failure,) = gate_failures(changed, kernels)
    assert failure.startswith(told)


@pytest.mark.parametrize("code", [0, 1])
def test_the_model_that_ships_is_exported_quantised_and_compared(monkeypatch, tmp_path, code):
    commands, exported = [], []
    manifest = SimpleNamespace(source="source.safetensors", preset="nano")
    shipped = SimpleNamespace(bundle_id="its id", manifest=manifest, path=lambda n: tmp_path / n)
    monkeypatch.setattr(prove_calibration, "bundle_folder", lambda name: name)
    monkeypatch.setattr(prove_calibration, "open_bundle", lambda folder: shipped)
    monkeypatch.setattr(prove_calibration, "export_bundle", lambda r, report: exported.append(r))

    def run(line, **options):
        commands.append(line[2:])
        return SimpleNamespace(returncode=code, stdout=json.dumps(FOUND))

    def output(line, text):
        commands.append(line[2:])
        return json.dumps({**KERNELS, "mask_iou": 0.995})

    monkeypatch.setattr(prove_calibration.subprocess, "run", run)
    monkeypatch.setattr(prove_calibration.subprocess, "check_output", output)
    record = prove_calibration.gate()
    (request,) = exported
    assert (request.checkpoint, request.precisions) == (tmp_path / manifest.source, BOTH)
    calibrate = commands[0]
    command.make_context("refsam-calibrate", calibrate[1:])
    assert calibrate[calibrate.index("--min-share") + 1] == "0.9"
    assert calibrate[calibrate.index("--max-jf-drop-points") + 1] == "0.5"
    if code:
        assert record["failures"] == ["nano: the gate says no"]
        return
    assert commands[1][0] == "refsam_prove.quantised.agreement"
    assert commands[1][2:] == ["r.json", "200"]
    assert record["failures"] == []
    assert read_clips(prove_calibration.CLIPS).verify.num_videos == prove_calibration.NUM_VERIFIED


def test_the_steps_are_those_of_the_issue():
    whats, presets = ("memory", "forms"), ("nano", "vitb")
    names = {f"calibration-{what}-{preset}" for what in whats for preset in presets}
    names.add("calibration-nano")
    assert names == set(prove_calibration.STEPS) <= set(STEPS)
    assert prove_calibration.VITB_LIMIT_MIB == 6144
