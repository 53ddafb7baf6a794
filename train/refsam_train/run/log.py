"""The log of a run: one JSON object per line, cut back to the checkpoint when a run resumes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from refsam_trt.files.atomic import atomic_path

LOG_NAME = "log.jsonl"


class RunLog:
    """Appends records to `log.jsonl` of a folder; every record has a `step`.

    Args:
        folder: where the file lies.
        enabled: False writes nothing (processes other than the first).
    """

    def __init__(self, folder: Path, *, enabled: bool = True) -> None:
        self.path = folder / LOG_NAME
        self._enabled = enabled

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; numbers are rounded to six digits, infinities and NaN become null."""
        if self._enabled:
            line = json.dumps({key: _tidy(value) for key, value in record.items()})
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def drop_after(self, step: int) -> None:
        """Remove what was written after the checkpoint of `step`: those steps are done again."""
        if self._enabled and self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            with atomic_path(self.path) as part:
                part.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _tidy(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return {k: _tidy(v) for k, v in value.items()} if isinstance(value, dict) else value


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # the last line of a killed run may be incomplete
