"""The steps of `make prove` about calibration: what they run, and when they fail."""

import json
import subprocess
import sys

import pytest

from refsam_bench import prove_calibration
from refsam_bench.prove import STEPS
from refsam_bench.prove_calibration import forms, memory, memory_failures


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
    assert commands == [["-m", "refsam_calibration.memory", "nano", n] for n in ("16", "512")]
    assert record["peak_mib"] == {"16": 101.0, "512": 102.0}
    assert record["growth"] == pytest.approx(102 / 101)
    assert record["failures"] == []


def test_the_program_prints_its_peak():
    command = [sys.executable, "-m", "refsam_calibration.memory", "tiny", "4"]
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
    assert commands == [["-m", "refsam_calibration.forms", "vitb", "6"]]
    assert record["forms"] == {"minmax": {"relative_error": 0.5}}


def test_the_steps_are_those_of_the_issue():
    whats, presets = ("memory", "forms"), ("nano", "vitb")
    names = {f"calibration-{what}-{preset}" for what in whats for preset in presets}
    assert names == set(prove_calibration.STEPS) <= set(STEPS)
    assert prove_calibration.VITB_LIMIT_MIB == 6144
