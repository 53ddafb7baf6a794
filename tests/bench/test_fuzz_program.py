"""`python -m refsam_bench.fuzz`: what it makes of how a fuzzed process ended."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from refsam_bench import fuzz
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
    """A tree with two targets, `sound` and `broken`, and a fuzzer that only says how it ended."""
    for name in ("sound", "broken"):
        (tmp_path / "tests" / "corpus" / name).mkdir(parents=True)
    program = f"""
import json, os, sys
if sys.argv[1] == "broken":
    print({CRASH!r}, file=sys.stderr)
    sys.exit(77)
if os.path.exists("interrupt"):
    sys.exit(72)
print(json.dumps([sys.argv[1:], os.environ["RUST_BACKTRACE"]]), flush=True)
print({STATISTICS!r}, file=sys.stderr)
"""
    (tmp_path / "tests" / "fuzz_one.py").write_text(program)
    monkeypatch.setattr(fuzz, "ROOT", tmp_path)
    monkeypatch.setattr(fuzz, "SEEDS", tmp_path / "tests" / "corpus")
    monkeypatch.setattr(fuzz, "LEARNT", tmp_path / "learnt")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: sys)
    return tmp_path


def test_a_quiet_run_has_no_failures(tree: Path):
    assert fuzz.fuzz("sound", 5) == {
        "target": "sound",
        "seconds": 5,
        "num_executions": 1234,
        "peak_memory_mib": 56,
        "failures": [],
    }
    arguments, backtrace = json.loads((tree / "learnt/sound/log.txt").read_text().splitlines()[0])
    assert backtrace == "0"
    assert arguments[0] == "sound"
    assert {"-max_total_time=5", "-timeout=20", "-rss_limit_mb=2048"} < set(arguments)
    folders = [tree / "learnt/sound/corpus", fuzz.SEEDS / "sound", tree / "learnt/sound/findings"]
    assert arguments[-3:] == [str(folder) for folder in folders]


def test_a_finding_is_a_failure():
    assert fuzz.fuzz("broken", 5)["failures"] == [
        "exit code 77 | KeyError: 'size' | ==7== ERROR: libFuzzer: fuzz target exited | "
        "x/crash-0123"
    ]


def test_the_command_shares_the_time_and_tells_findings():
    done = CliRunner().invoke(fuzz.command, ["--seconds", "30"])
    assert done.exit_code == 1
    results = [json.loads(line) for line in done.output.splitlines()]
    assert [(r["target"], r["seconds"]) for r in results] == [("broken", 15), ("sound", 15)]
    assert CliRunner().invoke(fuzz.command, ["sound", "--seconds", "3"]).exit_code == 0


def test_unknown_targets_and_a_missing_fuzzer_are_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="no target 'other'; targets: broken, sound"):
        fuzz.fuzz("other", 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'fuzzing needs .*pip install "refsam-trt\[dev\]"'):
        fuzz.fuzz("sound", 1)


def test_an_interrupted_run_is_no_result(tree: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tree)
    (tree / "interrupt").touch()
    with pytest.raises(KeyboardInterrupt):
        fuzz.fuzz("sound", 5)
