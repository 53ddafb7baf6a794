"""The hour of fuzzing as a file that is kept up to date: whatever is finished is never lost.

It holds for the code that was fuzzed: a change of it, comments and docstrings apart, begins the
hour anew, other commits do not.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refsam_bench.fuzz import ROOT, TOTAL_S, Fuzzed, fuzz, target_names
from refsam_trt.atomic import atomic_path

_CODE = ("refsam_trt/**/*.py", "tests/fuzz_*.py", "tests/fake_*.py")
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
    digest = code_digest(root)
    targets = _kept(path, digest)

    def keep(done: Fuzzed) -> None:
        targets[done.target] = done
        with atomic_path(path) as temporary:
            text = json.dumps(_record(about, digest, total_s, targets), indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")

    for name in target_names():
        done = targets.get(name, Fuzzed(name))
        if done.failures:
            done = Fuzzed(name)
        done = fuzz(name, total_s / len(target_names()), done, keep)
        told = "; ".join(done.failures) or "nothing found"
        say(f"fuzz {name}: {done.cpu_s:.0f} CPU seconds, {done.num_executions} inputs, {told}")
    return _record(about, digest, total_s, targets)


def code_digest(root: Path) -> str:
    """Return the SHA-256 of what is fuzzed and how: the syntax trees, without docstrings."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _CODE for path in root.glob(pattern)):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
        digest.update(f"{path.relative_to(root).as_posix()}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()


def _kept(path: Path, digest: str) -> dict[str, Fuzzed]:
    """Return what an earlier run did to this very code; a target that is no more is left out."""
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if record.get("code") != digest:
        return {}
    found = {name: Fuzzed(**entry) for name, entry in record["targets"].items()}
    return {
        name: dataclasses.replace(done, failures=tuple(done.failures))
        for name, done in found.items()
        if name in target_names()
    }


def _record(
    about: Mapping[str, Any], digest: str, total_s: float, targets: Mapping[str, Fuzzed]
) -> dict[str, Any]:
    failures = [f"{name}: {told}" for name, done in targets.items() for told in done.failures]
    return {
        **about,
        "code": digest,
        "wanted_cpu_s": total_s,
        "cpu_s": round(sum(done.cpu_s for done in targets.values()), 1),
        "num_executions": sum(done.num_executions for done in targets.values()),
        "targets": {name: dataclasses.asdict(done) for name, done in targets.items()},
        "failures": failures,
    }
