"""Jobs in processes of their own: real ones, and ones that die in every way."""

import sys
from pathlib import Path
from typing import Any

import pytest

from refsam_bench.gpu import isolation
from refsam_bench.gpu.isolation import run_isolated
from refsam_bench.gpu.request import Case, GpuRequest, Job, Subject

BEGUN = 'os.write(fd, b\'{"step": "build", "state": "begun"}\\n\')'
DONE = 'os.write(fd, b\'{"step": "build", "state": "done"}\\n\')'
END = 'os.write(fd, b\'{"step": "plans", "state": "end"}\\n\')'


def job(folder: Path) -> Job:
    request = GpuRequest(folder / "gpu.json", presets=("tiny",), frame_hw=(48, 64), limit_s=9.0)
    case = Case("tensorrt", "fp16")
    return Job("plans", request, Subject("tiny", folder / "bundle", folder), case, (case,))


def run(folder: Path, timeout_s: float | None = 60.0) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    run_isolated(job(folder), events.append, folder / "log", timeout_s)
    return events


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Let a few lines of Python stand for the interpreter with the worker in it."""

    def write(*lines: str) -> None:
        path = tmp_path / "program"
        head = [f"#!{sys.executable} -S", "import os, signal, sys, time", "fd = int(sys.argv[3])"]
        path.write_text("\n".join([*head, *lines]) + "\n")
        path.chmod(0o755)
        monkeypatch.setattr(isolation.sys, "executable", str(path))

    return write


def test_a_job_survives_its_way_through_json(tmp_path: Path):
    assert Job.from_json(job(tmp_path).to_json()) == job(tmp_path)


def test_a_real_process_tells_how_its_steps_ended(tmp_path: Path):
    """There is no TensorRT here, or no bundle: whatever it is, the step says so."""
    begun, failed = run(tmp_path)
    assert begun == {"step": "build", "state": "begun"}
    assert (failed["step"], failed["state"]) == ("build", "failed")
    assert failed["error"]["type"] in {"MissingExtraError", "BundleError", "PlanDeviceError"}
    assert failed["seconds"] >= 0


def test_a_process_that_is_killed_fails_the_step_that_it_was_in(program: Any, tmp_path: Path):
    program("print('last words', flush=True)", BEGUN, "os.kill(os.getpid(), signal.SIGSEGV)")
    begun, failed = run(tmp_path)
    assert begun["state"] == "begun"
    assert failed == {
        "step": "build",
        "state": "failed",
        "error": {
            "type": "ProcessDied",
            "text": "the process of this step was killed by SIGSEGV; it printed: last words",
        },
    }


def test_a_process_that_fails_before_any_step_fails_the_job(program: Any, tmp_path: Path):
    program("sys.exit(3)")
    (failed,) = run(tmp_path)
    assert failed["step"] == "plans"
    assert failed["error"]["text"] == (
        "the process of this step was ended with exit code 3; it printed: nothing"
    )


def test_a_process_that_hangs_is_killed(program: Any, tmp_path: Path):
    program(BEGUN, "time.sleep(600)")
    failed = run(tmp_path, timeout_s=1.0)[-1]
    assert failed["step"] == "build"
    assert failed["error"]["text"].startswith("the process of this step was killed after 1 s; it")


def test_steps_that_are_done_stay_done_when_the_process_dies_later(program: Any, tmp_path: Path):
    program(BEGUN, DONE, 'os.write(fd, b\'{"step": "ot\')', "os.abort()")
    states = [(event["step"], event["state"]) for event in run(tmp_path, timeout_s=None)]
    assert states == [("build", "begun"), ("build", "done"), ("plans", "failed")]


def test_a_process_that_ends_well_adds_nothing(program: Any, tmp_path: Path):
    program(BEGUN, DONE, END)
    assert [event["state"] for event in run(tmp_path)] == ["begun", "done"]
