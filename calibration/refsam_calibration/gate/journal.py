"""Results that were measured, one JSON line each: interrupted work goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refsam_trt.errors import CalibrationError
from refsam_trt.files.target import output_errors


class Journal:
    """A file whose first line says what all others depend on; each of them has a key.

    A last line that was cut off by an interruption is dropped.

    Args:
        path: the file; made if it does not exist, with the folders it lies in.
        about: what the results depend on, as `json.dumps` takes it.

    Raises:
        CalibrationError: the file depends on something else, or is damaged.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path = path
        self._results: dict[str, dict[str, Any]] = {}
        whole = self._read(dict(about))
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not whole:
                path.write_text(_line(about), encoding="utf-8")
            elif whole < path.stat().st_size:
                with path.open("r+b") as file:
                    file.truncate(whole)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the result with this key, None if there is none yet."""
        return self._results.get(key)

    def add(self, key: str, result: Mapping[str, Any]) -> None:
        """Keep a result, on disk too."""
        with output_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(_line({"key": key, **result}))
        self._results[key] = dict(result)

    def _read(self, about: dict[str, Any]) -> int:
        """Read what is there; return the size of all whole lines in bytes."""
        if not self._path.exists():
            return 0
        try:
            content = self._path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            lines = [json.loads(line) for line in whole.splitlines()]
        except (OSError, ValueError) as error:
            raise CalibrationError(
                f"{self._path}: not a journal of refsam-calibrate ({error}); remove it"
            ) from error
        if lines and lines[0] != json.loads(_line(about)):
            raise CalibrationError(
                f"{self._path}: results that depend on something else "
                f"({_differing(lines[0], about)}); remove it, or give another --work folder"
            )
        for line in lines[1:]:
            self._results[line.pop("key")] = line
        return len(whole)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _differing(stated: Any, expected: Mapping[str, Any]) -> str:
    if not isinstance(stated, dict):
        return "no first line that tells"
    keys = sorted(key for key in {*stated, *expected} if stated.get(key) != expected.get(key))
    return f"{', '.join(keys)} differ"
