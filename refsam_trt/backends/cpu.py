"""What the operating system says of the processor."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """Return the processor's name, "unknown" where nothing tells it."""
    return _cpuinfo().get("model name") or platform.processor() or "unknown"


def features() -> frozenset[str]:
    """Return the names of the instruction sets, as Linux has them; empty on other systems."""
    fields = _cpuinfo()
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def _cpuinfo() -> dict[str, str]:
    """Return what Linux says of the first core; nothing on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
