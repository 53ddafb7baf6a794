"""What this machine has left: memory, as far as this process may use it, and disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_ROOT = Path("/")


def available_memory_bytes(root: Path = _ROOT) -> int | None:
    """Return the memory that this process can still get, None where the system does not say.

    That of the machine, or of the control group of this process or of one around it (a container,
    a batch system) where that is less. What the system only keeps to be quick counts as free.

    Args:
        root: where `proc` and `sys` lie.
    """
    limits = [_machine_bytes(root), *_group_bytes(root)]
    return min((limit for limit in limits if limit is not None), default=None)


def free_disk_bytes(folder: Path) -> int:
    """Return the bytes that can still be written below a folder."""
    return shutil.disk_usage(folder).free


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _machine_bytes(root: Path) -> int | None:
    for line in _lines(root / "proc" / "meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _group_bytes(root: Path) -> list[int | None]:
    """Return what is left of each group's limit: of version 2 and, in its own tree, version 1."""
    left: list[int | None] = []
    for line in _lines(root / "proc" / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        base = root / "sys" / "fs" / "cgroup"
        names = ("memory.max", "memory.current", "inactive_file")
        if "memory" in controllers.split(","):
            base /= "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        elif controllers:
            continue
        # In a container the path may be that of the machine, and the group the root of its tree.
        group = base / path.lstrip("/")
        left += [
            _left(folder, *names)
            for folder in (group, *group.parents)
            if base in (folder, *folder.parents)
        ]
    return left


def _left(group: Path, limit: str, used: str, cache: str) -> int | None:
    numbers = [_number(group / limit), _number(group / used)]
    if numbers[0] is None or numbers[1] is None:
        return None
    fields = dict(line.split(maxsplit=1) for line in _lines(group / "memory.stat"))
    cached = int(fields.get(cache, 0))
    return max(0, numbers[0] - numbers[1] + cached)


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdecimal() else None  # "max": there is no limit


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
