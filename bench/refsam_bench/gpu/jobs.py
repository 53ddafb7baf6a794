"""The jobs by kind; each runs in a process of its own (`worker`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from refsam_bench.gpu.bundles import make_bundle
from refsam_bench.gpu.checks import build, check, measure_memory
from refsam_bench.gpu.pytorch_checks import check_pytorch
from refsam_bench.gpu.request import Job
from refsam_bench.gpu.speed import race
from refsam_bench.gpu.steps import Steps

JOBS: Mapping[str, Callable[[Job, Steps], None]] = {
    "bundle": make_bundle,
    "pytorch": check_pytorch,
    "plans": build,
    "memory": measure_memory,
    "checks": check,
    "speed": race,
}
"""What each kind does."""
