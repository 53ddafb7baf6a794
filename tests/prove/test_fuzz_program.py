"""`python -m refsam_prove.fuzz.program` and its record: what they count, what they keep."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from refsam_prove import steps as prove
from refsam_prove.fuzz import program as fuzz
from refsam_prove.fuzz import record as fuzz_record
from refsam_prove.fuzz.program import Fuzzed
from refsam_trt.errors import MissingExtraError, UsageError

STATISTICS = "stat::number_of_executed_units: 1234\nstat::peak_rss_mb: 56\n"
CRASH = f"""
 === Uncaught Python exception: ===
KeyError: 'size'
Traceback (most recent call last):
==7== ERROR: libFuzzer: fuzz target exited
artifact_prefix='x/'; Test unit written to x/crash-0123
{STATISTICS}"""


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with two targets, `sound` and `broken`, and a fuzzer that only says how it ended.

    Its setup burns 0.15 CPU seconds, then it sleeps and burns 0.2 "on inputs".
    """
    for name in ("sound", "broken"):
        (tmp_path / "tests" / "corpus" / name).mkdir(parents=True)
    program = f"""
import json, os, sys, time
def burn(seconds):
    stop = time.process_time() + seconds
    while time.process_time() < stop: pass
if os.path.exists("interrupt"):
    sys.exit(72)
if sys.argv[1] == "broken" and not os.path.exists("mended"):
    print({CRASH!r}, file=sys.stderr)
    sys.exit(77)
burn(0.15)
print(f"setup took {{time.process_time():.3f}} CPU seconds", flush=True)
time.sleep(0.2)
if not os.path.exists("starve"):
    burn(0.2)
print(json.dumps([sys.argv[1:], os.environ["RUST_BACKTRACE"]]), flush=True)
print({STATISTICS!r}, file=sys.stderr)
"""
    (tmp_path / "tests" / "support").mkdir()
    (tmp_path / "tests" / "support" / "fuzz_one.py").write_text(program)
    # Both targets run other.py, and `sound` the reader too.
    modules = f"""
import json, sys
from pathlib import Path
code = Path({str(tmp_path)!r}) / "refsam_trt"
files = ["other.py", "deep/reader.py"] if sys.argv[1] == "sound" else ["other.py"]
print(json.dumps([str(code / name) for name in files]))
"""
    (tmp_path / "tests" / "support" / "fuzz_modules.py").write_text(modules)
    code = tmp_path / "refsam_trt" / "deep" / "reader.py"
    code.parent.mkdir(parents=True)
    code.write_text("def read(data):\n    return data[1:]\n")
    (tmp_path / "refsam_trt" / "other.py").write_text("A = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzz, "ROOT", tmp_path)
    monkeypatch.setattr(fuzz, "SEEDS", tmp_path / "tests" / "corpus")
    monkeypatch.setattr(fuzz, "LEARNT", tmp_path / "learnt")
    monkeypatch.setattr(fuzz, "MIN_ROUND_S", 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: sys)
    return tmp_path


def test_a_quiet_run_has_no_failures(tree: Path):
    done = fuzz.fuzz("sound", 0.1)
    assert done.failures == ()
    assert (done.num_executions, done.peak_memory_mib) == (1234, 56)
    arguments, backtrace = json.loads((tree / "learnt/sound/log.txt").read_text().splitlines()[1])
    assert backtrace == "0"
    assert arguments[0] == "sound"
    assert {"-max_total_time=1", "-timeout=20", "-rss_limit_mb=2048"} < set(arguments)
    folders = [tree / "learnt/sound/corpus", fuzz.SEEDS / "sound", tree / "learnt/sound/findings"]
    assert arguments[-3:] == [str(folder) for folder in folders]


def test_neither_setup_nor_waiting_counts():
    done = fuzz.fuzz("sound", 0.1)
    assert 0.18 < done.cpu_s < 0.28
    assert done.wall_s > 0.5


def test_rounds_go_on_until_the_time_is_spent():
    kept: list[Fuzzed] = []
    done = fuzz.fuzz("sound", 0.5, Fuzzed("sound", 0.2, 1.0, 1000), kept.append)
    assert len(kept) == 2
    assert kept[-1] == done
    assert done.num_executions == 1000 + 2 * 1234
    assert 0.55 < done.cpu_s < 0.8


def test_the_last_round_is_not_too_short_to_be_worth_its_start(tree, monkeypatch):
    monkeypatch.setattr(fuzz, "MIN_ROUND_S", 7)
    fuzz.fuzz("sound", 0.1)
    log = (tree / "learnt/sound/log.txt").read_text()
    assert "-max_total_time=7" in log


def test_what_never_gets_to_run_is_given_up(tree: Path, monkeypatch: pytest.MonkeyPatch):
    (tree / "starve").touch()
    monkeypatch.setattr(fuzz, "ROUND_S", 0)
    assert fuzz.fuzz("sound", 0.05).failures[0].startswith("starved: 0 of 0 CPU seconds after 1 s")


def test_a_finding_is_a_failure():
    assert fuzz.fuzz("broken", 5).failures == (
        "exit code 77 | KeyError: 'size' | ==7== ERROR: libFuzzer: fuzz target exited | "
        "x/crash-0123",
    )


def test_the_command_shares_the_time_and_tells_findings(monkeypatch: pytest.MonkeyPatch):
    shares = []
    real = fuzz.fuzz

    def fuzz_a_little(name: str, cpu_s: float) -> Fuzzed:
        shares.append((name, cpu_s))
        return real(name, 0.01)

    monkeypatch.setattr(fuzz, "fuzz", fuzz_a_little)
    done = CliRunner().invoke(fuzz.command, ["--seconds", "30"])
    assert done.exit_code == 1
    results = [json.loads(line) for line in done.output.splitlines()]
    assert [r["target"] for r in results] == ["broken", "sound"]
    assert shares == [("broken", 15), ("sound", 15)]
    assert CliRunner().invoke(fuzz.command, ["sound", "--seconds", "3"]).exit_code == 0


def test_unknown_targets_and_a_missing_fuzzer_are_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="no target 'other'; targets: broken, sound"):
        fuzz.fuzz("other", 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'fuzzing needs .*pip install "refsam-trt\[dev\]"'):
        fuzz.fuzz("sound", 1)


def test_an_unknown_step_is_refused():
    with pytest.raises(UsageError, match=r"no step named \['fuzz-rle'\]; steps: import, .*, fuzz$"):
        prove.main(["fuzz-rle"])


def test_an_interrupted_run_is_no_result(tree: Path):
    (tree / "interrupt").touch()
    with pytest.raises(KeyboardInterrupt):
        fuzz.fuzz("sound", 5)


def record(tree: Path, total_s: float = 0.2) -> dict:
    path = tree / "fuzz.json"
    returned = fuzz_record.fuzz_all(
        path, {"commit": "c"}, lambda line: None, total_s=total_s, root=tree
    )
    assert json.loads(path.read_text()) == json.loads(json.dumps(returned))
    return returned


def test_the_record_tells_what_every_target_had(tree: Path):
    found = record(tree)
    assert found["commit"] == "c"
    assert list(found["targets"]) == ["broken", "sound"]
    assert found["targets"]["sound"]["cpu_s"] >= 0.1
    assert found["num_executions"] == 2 * 1234
    assert [failure[:21] for failure in found["failures"]] == ["broken: exit code 77 "]


def test_finished_targets_and_rounds_survive_an_interruption(tree: Path):
    """Killed in the second target: the first one is not run again, findings are."""
    (tree / "mended").touch()
    calls = []
    real = fuzz.fuzz

    def interrupted(name, cpu_s, done, keep):
        calls.append((name, done.num_executions))
        if name == "sound" and len(calls) == 2:
            keep(Fuzzed("sound", 0.01, 1.0, 7))
            raise KeyboardInterrupt
        return real(name, cpu_s, done, keep)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuzz_record, "fuzz", interrupted)
        with pytest.raises(KeyboardInterrupt):
            record(tree)
        found = record(tree)
    assert calls == [("broken", 0), ("sound", 0), ("broken", 1234), ("sound", 7)]
    assert found["targets"]["broken"]["num_executions"] == 1234
    assert found["targets"]["sound"]["num_executions"] == 7 + 1234
    assert found["failures"] == []


def test_a_target_with_findings_begins_anew(tree: Path):
    assert record(tree)["failures"]
    (tree / "mended").touch()
    found = record(tree)
    assert found["failures"] == []
    assert found["targets"]["broken"]["num_executions"] == 1234


def test_another_code_begins_the_time_of_its_targets_anew(tree: Path):
    (tree / "mended").touch()
    began = record(tree)["targets"]
    began_s = began["sound"]
    code = tree / "refsam_trt" / "deep" / "reader.py"
    code.write_text('def read(data):\n    """Say what it does."""\n    return data[1:]  # all\n')
    assert record(tree)["targets"]["sound"] == began_s
    code.write_text("def read(data):\n    return data[2:]\n")
    again = record(tree)["targets"]
    assert again["sound"] != began_s
    assert again["broken"] == began["broken"]
    (tree / "refsam_trt" / "other.py").write_text("A = 2\n")
    anew = record(tree)["targets"]
    assert anew["sound"] != again["sound"]
    assert anew["broken"] != again["broken"]


@pytest.mark.parametrize(
    ("name", "runs", "does_not"),
    [("rle", "rle.py", "engine.py"), ("state", "engine.py", "datasets.py")],
)
def test_the_real_targets_tell_what_they_run(monkeypatch, name, runs, does_not):
    monkeypatch.undo()
    pytest.importorskip("av")
    names = {path.name for path in fuzz_record.loaded_code(name, fuzz.ROOT)}
    assert {runs, "fuzz_targets.py", "fuzz_one.py"} <= names
    assert does_not not in names


def test_the_real_program_tells_when_its_setup_is_over(monkeypatch, tmp_path):
    monkeypatch.undo()
    pytest.importorskip("atheris", reason="no fuzzer for this Python", exc_type=ImportError)
    monkeypatch.setattr(fuzz, "LEARNT", tmp_path)
    monkeypatch.setattr(fuzz, "MIN_ROUND_S", 1)
    began_s = time.monotonic()
    done = fuzz.fuzz("rle", 0.2)
    assert done.failures == ()
    assert 0.2 <= done.cpu_s < done.wall_s <= time.monotonic() - began_s
    assert done.num_executions > 10


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is inherited on Linux alone")
def test_the_memory_of_whoever_starts_the_fuzzer_is_not_that_of_the_fuzzer(monkeypatch, tmp_path):
    monkeypatch.undo()
    pytest.importorskip("atheris", reason="no fuzzer for this Python", exc_type=ImportError)
    monkeypatch.setattr(fuzz, "LEARNT", tmp_path)
    monkeypatch.setattr(fuzz, "MIN_ROUND_S", 1)
    ballast = np.ones(1 << 30, np.uint8)
    done = fuzz.fuzz("rle", 0.2)
    assert done.failures == ()
    assert 0 < done.peak_memory_mib < ballast.nbytes >> 20
