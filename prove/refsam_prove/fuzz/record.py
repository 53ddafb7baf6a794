"""The hour of fuzzing as a file that is kept up to date: whatever is finished is never lost.

What was done to a target holds for the code that it runs: a change of that, comments and docstrings
apart, begins its time anew, other commits do not.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from refsam_prove.fuzz.program import ROOT, TOTAL_S, Fuzzed, fuzz, target_names
from refsam_trt.files.atomic import atomic_path

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def fuzz_all(
    path: Path,
    about: Mapping[str, Any],
    say: Callable[[str], None],
    *,
    total_s: float = TOTAL_S,
    root: Path = ROOT,
) -> dict[str, Any]:
    """Give every target its share of the time, go on where an earlier run stopped, and record it.

    A target that found something is fuzzed anew, its former findings first.

    Args:
        path: JSON file to go on from and to write, after every round.
        about: what the record says beside: commit and environment of the last round.
        say: called with one line per target.
        total_s: CPU seconds of all targets together.
        root: of the code.

    Returns:
        The record: `targets` (name -> `Fuzzed`), `cpu_s` over all, `failures`.
    """
    digests = {name: code_digest(loaded_code(name, root), root) for name in target_names()}
    targets = _kept(path, digests)

    def record() -> dict[str, Any]:
        failures = [f"{name}: {told}" for name, done in targets.items() for told in done.failures]
        return {
            **about,
            "code": digests,
            "wanted_cpu_s": total_s,
            "cpu_s": round(sum(done.cpu_s for done in targets.values()), 1),
            "num_executions": sum(done.num_executions for done in targets.values()),
            "targets": {name: dataclasses.asdict(done) for name, done in targets.items()},
            "failures": failures,
        }

    def keep(done: Fuzzed) -> None:
        targets[done.target] = done
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")

    for name in target_names():
        done = targets.get(name, Fuzzed(name))
        if done.failures:
            done = Fuzzed(name)
        done = fuzz(name, total_s / len(target_names()), done, keep)
        told = "; ".join(done.failures) or "nothing found"
        say(f"fuzz {name}: {done.cpu_s:.0f} CPU seconds, {done.num_executions} inputs, {told}")
    return record()


def loaded_code(name: str, root: Path) -> list[Path]:
    """Return our files that a target has imported once its seeds have gone through it."""
    program = [sys.executable, str(root / "tests" / "support" / "fuzz_modules.py"), name]
    quiet = {**os.environ, "RUST_BACKTRACE": "0"}
    ran = subprocess.run(program, capture_output=True, check=True, text=True, env=quiet)
    return [Path(path) for path in json.loads(ran.stdout.splitlines()[-1])]


def code_digest(paths: Sequence[Path], root: Path) -> str:
    """Return the SHA-256 of the syntax trees of files below `root`, without docstrings."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
        digest.update(f"{path.relative_to(root).as_posix()}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()


def _kept(path: Path, digests: Mapping[str, str]) -> dict[str, Fuzzed]:
    """Return what an earlier run did to this very code; a target that is no more is left out."""
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"targets": {}}
    return {
        name: done
        for name, done in msgspec.convert(record["targets"], dict[str, Fuzzed]).items()
        if name in digests and record["code"].get(name) == digests[name]
    }
