"""What a machine has left, read from files as Linux writes them."""

from pathlib import Path

import pytest

from refsam_export.needs.machine import available_memory_bytes, free_disk_bytes, num_cores

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE = {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable:   {8 * GIB // 1024} kB\n"}


def test_a_machine_without_groups(tmp_path: Path) -> None:
    assert available_memory_bytes(write(tmp_path, MACHINE)) == 8 * GIB


def test_a_system_that_says_nothing(tmp_path: Path) -> None:
    assert available_memory_bytes(tmp_path) is None


def group(limit: str, used: int, cached: int = 0) -> dict[str, str]:
    return {
        "memory.max": f"{limit}\n",
        "memory.current": f"{used}\n",
        "memory.stat": f"anon 7\ninactive_file {cached}\nactive_file 1\n",
    }


@pytest.mark.parametrize(
    ("folder", "limit", "used", "cached", "left"),
    [
        ("job/own", str(4 * GIB), GIB, 0, 3 * GIB),
        ("job", str(4 * GIB), GIB, 0, 3 * GIB),  # a group around counts too
        ("", str(4 * GIB), 3 * GIB, GIB, 2 * GIB),  # the root of a container; cache can go
        ("job/own", "max", GIB, 0, 8 * GIB),
        ("job/own", str(GIB), 2 * GIB, 0, 0),
    ],
)
def test_control_groups_of_version_2(
    folder: str, limit: str, used: int, cached: int, left: int, tmp_path: Path
) -> None:
    files = {f"sys/fs/cgroup/{folder}/{k}": v for k, v in group(limit, used, cached).items()}
    write(tmp_path, {**MACHINE, "proc/self/cgroup": "0::/job/own\n", **files})
    assert available_memory_bytes(tmp_path) == left


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    base = "sys/fs/cgroup/memory/job"
    files = {
        "proc/self/cgroup": "3:cpu,cpuacct:/other\n2:memory:/job\n",
        f"{base}/memory.limit_in_bytes": str(4 * GIB),
        f"{base}/memory.usage_in_bytes": str(3 * GIB),
        f"{base}/memory.stat": f"cache 5\ntotal_inactive_file {GIB}\n",
    }
    assert available_memory_bytes(write(tmp_path, {**MACHINE, **files})) == 2 * GIB


def test_this_machine(tmp_path: Path) -> None:
    assert num_cores() >= 1
    assert free_disk_bytes(tmp_path) > 0
