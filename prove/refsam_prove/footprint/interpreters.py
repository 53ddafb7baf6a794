"""The Pythons of this machine, wherever they lie: on `PATH`, under pyenv, in `REFSAM_PYTHONS`."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from refsam_trt.errors import UsageError

VARIABLE = "REFSAM_PYTHONS"
"""Paths of more interpreters, joined as those of `PATH` are."""

Version = tuple[int, int, int]

_NAME = re.compile(r"python3\.\d+")
_OLDEST = (3, 10)
_ASK = (
    "import json, sys; v = sys.version_info; "
    "print(json.dumps([sys.implementation.name, v.releaselevel, list(v[:3])]))"
)
_ANSWER_S = 30


def find_python(minor_version: tuple[int, int] | None) -> tuple[Path, Version]:
    """Return an interpreter and its version: of a minor version, or for None the newest.

    Only released CPython from 3.10 on counts; of several of one minor version the latest is taken.

    Raises:
        UsageError: there is none.
    """
    interpreters = [
        (version, path)
        for path in sorted(set(_candidates()))
        if (version := _version(path)) and minor_version in (None, version[:2])
    ]
    if not interpreters:
        shown = "3.10 or newer" if minor_version is None else ".".join(map(str, minor_version))
        raise UsageError(
            f"no CPython {shown} on this machine; install it (`pyenv install` does), or name "
            f"interpreters in the environment variable {VARIABLE}"
        )
    version, path = max(interpreters)
    return path, version


def _candidates() -> Iterator[Path]:
    yield from (Path(path) for path in _paths(VARIABLE))
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for folder in [*map(Path, _paths("PATH")), *pyenv.glob("versions/*/bin")]:
        yield from (path for path in folder.glob("python3.*") if _NAME.fullmatch(path.name))


def _paths(variable: str) -> list[str]:
    return [path for path in os.environ.get(variable, "").split(os.pathsep) if path]


def _version(path: Path) -> Version | None:
    """Return the version of a usable interpreter; pyenv's shims, for one, may lead nowhere."""
    try:
        answer = subprocess.run(
            [path, "-I", "-c", _ASK], capture_output=True, timeout=_ANSWER_S, check=True
        ).stdout
        name, level, (major, minor, micro) = json.loads(answer)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    is_usable = (name, level) == ("cpython", "final") and (major, minor) >= _OLDEST
    return (major, minor, micro) if is_usable else None
