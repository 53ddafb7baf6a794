"""The steps of `make prove` that export full-size models: what is measured, and when they fail."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refsam_prove import full_size as prove
from refsam_prove.full_size import BASE, GIB, HUGE, Limits
from refsam_prove.steps import STEPS
from refsam_trt.errors import UsageError

# Stands for the command: takes memory, in a process of its own too, and answers like it.
PROGRAM = """
import json, subprocess, sys, time
held = bytearray(60_000_000)
child = "import time; held = bytearray(90_000_000); time.sleep(1.5)"
subprocess.run([sys.executable, "-c", child], check=True)
print("refsam-export: done", file=sys.stderr)
print(json.dumps({"bundle_id": "1" * 64, "parity": {"arguments": sys.argv[1:]}}))
"""


def test_the_steps_ask_for_what_is_promised() -> None:
    asked = {name: step.args for name, step in prove.STEPS.items()}  # type: ignore[attr-defined]
    assert asked == {
        "export-vitb-augmented": ("vitb", "t5-small", "augmented", BASE),
        "export-vitb-bias": ("vitb", "t5-small", "bias", BASE),
        "export-vitb-reference": ("vitb", "t5-small", "reference", BASE),
        "export-vitl": ("vitl", "t5-3b", "augmented", HUGE),
        "export-vith": ("vith", "t5-3b", "augmented", HUGE),
    }
    assert (Limits(4 * GIB, 4.0), Limits(12 * GIB, 30.0)) == (BASE, HUGE)
    assert prove.STEPS.items() <= STEPS.items()


def test_memory_of_all_processes_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "_PROGRAM", PROGRAM)
    record: dict[str, Any] = prove.full_size("vitb", "t5-small", "bias", BASE)
    assert 150_000_000 < record["peak_anonymous_bytes"] <= record["peak_resident_bytes"] < 1e9
    assert 90_000_000 < record["peak_of_one_process_bytes"] < 150_000_000
    assert 0 < record["minutes"] < 2
    assert record["cpu_s"] > 0
    assert record["failures"] == []
    arguments = record["parity"]["arguments"]
    assert arguments[:8] == [
        *("--backbone", "vitb", "--text-encoder", "t5-small", "--attention", "bias"),
        *("--parity-frames", "5"),
    ]
    json.dumps(record)


def test_limits_that_do_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "_PROGRAM", PROGRAM)
    limits = Limits(100_000_000, 0.0001)
    memory, minutes = prove.full_size("vitb", "t5-small", "bias", limits)["failures"]
    assert memory.endswith("GiB resident, at most 0 allowed")
    assert "min, at most 0.0001 allowed on idle cores (load average " in minutes


def test_a_command_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "_PROGRAM", "import sys; print('no', file=sys.stderr); sys.exit(3)")
    with pytest.raises(UsageError, match=r"exit code 3; make it work .* It said: no"):
        prove.full_size("vitb", "t5-small", "bias", BASE)


def test_the_command_is_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", prove._PROGRAM, "--help"], capture_output=True, text=True, check=True
    )
    assert "--resume" in done.stdout
