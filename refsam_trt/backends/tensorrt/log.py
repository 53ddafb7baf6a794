"""TensorRT's own messages, kept: it tells what went wrong there and returns None."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from refsam_trt.backends.tensorrt.flavour import Flavour

_PRECISION = re.compile(
    r"fp16|half|bf16|overflow|underflow|subnormal|precision|out.of.range|nan\b", re.IGNORECASE
)
_NUM_SHOWN = 3


@dataclass
class TrtLog:
    """What a builder or a runtime said, oldest first.

    Attributes:
        lines: severity (`ERROR`, `WARNING` or `INFO`; worse than `ERROR` is that too) and text.
    """

    lines: list[tuple[str, str]] = field(default_factory=list)

    def of(self, severity: str) -> tuple[str, ...]:
        """Return the texts of one severity, each once."""
        return tuple(dict.fromkeys(text for kind, text in self.lines if kind == severity))

    @property
    def precision_warnings(self) -> tuple[str, ...]:
        """Warnings that speak of number formats or ranges."""
        return tuple(text for text in self.of("WARNING") if _PRECISION.search(text))

    def number(self, label: str) -> int | None:
        """Return the number after `label: ` in the last line that has it, None if none has."""
        pattern = re.compile(rf"{re.escape(label)}: (\d+)")
        matches = [match for _, text in self.lines if (match := pattern.search(text))]
        return int(matches[-1].group(1)) if matches else None

    def errors(self, since: int = 0) -> str:
        """Return the first error messages from line `since` on, as one text for our own."""
        errors = dict.fromkeys(text for kind, text in self.lines[since:] if kind == "ERROR")
        return "; ".join(list(errors)[:_NUM_SHOWN]) or "it gave no reason"


def make_logger(flavour: Flavour, log: TrtLog) -> Any:
    """Return a logger of that library which writes to `log`; must live as long as its users."""
    trt = flavour.trt
    severities = {
        trt.ILogger.Severity.INTERNAL_ERROR: "ERROR",
        trt.ILogger.Severity.ERROR: "ERROR",
        trt.ILogger.Severity.WARNING: "WARNING",
        trt.ILogger.Severity.INFO: "INFO",
    }

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in severities:  # what is left is verbose: a line per layer and pass
                log.lines.append((severities[severity], message))

    return Logger()
