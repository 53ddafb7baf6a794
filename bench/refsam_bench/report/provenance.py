"""Where the figures of a report come from: bundles by hash, machine, versions, commit."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import msgspec

import refsam_bench
from refsam_bench.report.quantisation import quantisation_entry
from refsam_trt.bundle.open import Bundle


def bundle_entry(bundle: Bundle) -> dict[str, Any]:
    """Return what identifies a bundle and the weights in it."""
    manifest, training = bundle.manifest, bundle.manifest.weights.training
    return {
        "name": bundle.folder.resolve().name,
        "bundle_id": bundle.bundle_id,
        "family": manifest.family,
        "preset": manifest.preset,
        "random_init_seed": manifest.weights.random_init_seed,
        "num_random_tensors": manifest.weights.num_random_tensors,
        "sources": [msgspec.to_builtins(source) for source in manifest.weights.sources],
        "training_runs": [msgspec.to_builtins(run) for run in training.runs] if training else [],
        "variants": sorted(manifest.variants),
        "tools": manifest.tools,
        "num_files": len(manifest.files),
        "size_bytes": sum(entry.size_bytes for entry in manifest.files.values()),
        "quantisation": quantisation_entry(bundle),
    }


def commit(module_file: str | None = None) -> str | None:
    """Return the commit of the source checkout that is running, `-dirty` with changes in it.

    None for an installed package, or without git. `module_file` is for tests.
    """
    folder = Path(module_file or str(refsam_bench.__file__)).resolve().parent
    if "site-packages" in folder.parts:
        return None
    head = _git(folder, "rev-parse", "HEAD")
    if not head or _git(folder, "ls-files", "__init__.py") != "__init__.py":
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return head if changes == "" else f"{head}-dirty"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
