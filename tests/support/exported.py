"""Exported bundles, one export per test run however many processes share it."""

import fcntl
from pathlib import Path

import pytest

from refsam_export.exporter import export_bundle
from refsam_export.request import ExportRequest


def exported(
    factory: pytest.TempPathFactory,
    preset: str,
    split: str = "optimised",
    precisions: tuple[str, ...] = ("fp32",),
) -> Path:
    """Return a bundle of random weights (seed 0), exported now or by another worker."""
    base = factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base
    target = shared / "-".join(["bundle", preset, split, *precisions])
    with (shared / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second worker waits for the first one's bundle
        if not target.exists():
            request = ExportRequest(
                preset,
                target,
                random_init=0,
                split=split,
                precisions=precisions,
                include_source=True,
            )
            export_bundle(request, lambda line: None)
    return target
