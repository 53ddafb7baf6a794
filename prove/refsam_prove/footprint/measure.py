"""What an installation costs: bytes on disk, seconds and memory until the first mask.

The wheel is built from its source archive and installed in fresh environments, with the newest
versions that pip finds for that Python; pip and setuptools are not in them, and models that ship
are counted by themselves. MB are 10^6 bytes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from refsam_prove.footprint import first_mask
from refsam_prove.footprint.interpreters import find_python
from refsam_trt.bundle.shipped import MODELS
from refsam_trt.errors import UsageError

ROOT = Path(__file__).resolve().parents[3]
NUM_RUNS = 5
FIRST_MASK_LIMIT_S = 1.5
_SHOWN_CHARACTERS = 2000
_SHIPPED = ("refsam_trt", MODELS.name)
_STAGES = {
    "interpreter": ("spawned_s", "started_s"),
    "import": ("started_s", "imported_s"),
    "load": ("imported_s", "loaded_s"),
    "expression": ("loaded_s", "expression_s"),
    "frame": ("expression_s", "mask_s"),
}
_SETTINGS = (
    "nano, random weights; refsam_trt.load(bundle) with all its defaults (verify='full': every "
    "file is hashed; text='lazy': the text graph is loaded and run); one expression, one frame of "
    "360x640; fresh processes, after one that warms the file cache"
)


@dataclass(frozen=True)
class FootprintRequest:
    """Which Python to install for (None: the newest here), and MB allowed per set of extras."""

    python: tuple[int, int] | None
    limits_mb: dict[str, float]


OLDEST = FootprintRequest((3, 10), {"cpu": 260, "cpu,video": 370})
NEWEST = FootprintRequest(None, {"cpu": 225, "cpu,video": 330})


def measure_footprint(
    request: FootprintRequest, export: Callable[[Path], object]
) -> dict[str, Any]:
    """Install, run and measure; `failures` tells which limits do not hold.

    Args:
        request: what to install where.
        export: writes the bundle to be run.

    Raises:
        UsageError: there is no such Python here, or building, installing or running failed.
    """
    python, version = find_python(request.python)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        bundle = scratch / "bundle"
        export(bundle)
        wheel = _build_wheel(scratch / "dist")
        measured = {
            extras: _measure(_install(python, wheel, extras, scratch / extras), bundle)
            for extras in request.limits_mb
        }
    return {
        "python": ".".join(map(str, version)),
        "settings": _SETTINGS,
        "limits": {"installed_mb": request.limits_mb, "first_mask_s": FIRST_MASK_LIMIT_S},
        "extras": measured,
        "failures": [*_broken(request, measured)],
    }


def sizes_of_distributions(site: Path) -> dict[str, int]:
    """Return the bytes of all files, compiled ones included, per distribution, largest first.

    A model that ships with ours is no part of it: it is data, and measured by itself.
    """
    sizes = {
        f"{distribution.metadata['Name']} {distribution.version}": sum(
            path.stat().st_size
            for file in distribution.files or ()
            if file.parts[:2] != _SHIPPED and (path := Path(str(file.locate()))).is_file()
        )
        for distribution in metadata.distributions(path=[str(site)])
    }
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _build_wheel(folder: Path) -> Path:
    _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT])
    (wheel,) = folder.glob("*.whl")
    return wheel


def _install(python: Path, wheel: Path, extras: str, target: Path) -> Path:
    """Return the interpreter of a fresh environment with the wheel in it."""
    _run([python, "-m", "venv", "--without-pip", target])
    own = target / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", own]
    _run([*pip, "install", "--quiet", f"{wheel}[{extras}]"])
    return own


def _measure(python: Path, bundle: Path) -> dict[str, Any]:
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(_run([python, "-I", "-c", code]).strip())
    sizes, models = sizes_of_distributions(site), site.joinpath(*_SHIPPED)
    load_before = os.getloadavg()[0]
    runs = [_first_mask(python, bundle) for _ in range(1 + NUM_RUNS)][1:]
    return {
        "installed_mb": sum(sizes.values()) / 1e6,
        "shipped_models_mb": sum(p.stat().st_size for p in models.rglob("*") if p.is_file()) / 1e6,
        "bytes_per_distribution": sizes,
        "first_mask_s": statistics.median(run["mask_s"] - run["spawned_s"] for run in runs),
        "stages_s": {
            name: statistics.median(run[stop] - run[start] for run in runs)
            for name, (start, stop) in _STAGES.items()
        },
        "cpu_s": statistics.median(run["cpu_s"] for run in runs),
        "resident_mb": statistics.median(run["resident_mb"] for run in runs),
        "num_runs": NUM_RUNS,
        "load_average": [load_before, os.getloadavg()[0]],
    }


def _first_mask(python: Path, bundle: Path) -> dict[str, float]:
    """Run `first_mask.py`, by its path; the clock is the same in all processes."""
    spawned_s = time.monotonic()
    output = _run([python, "-I", first_mask.__file__, bundle])
    times: dict[str, float] = json.loads(output)
    return {"spawned_s": spawned_s, **times}


def _broken(request: FootprintRequest, measured: dict[str, Any]) -> list[str]:
    failures = []
    for extras, figures in measured.items():
        checks = (
            ("installed_mb", request.limits_mb[extras], "MB installed"),
            ("first_mask_s", FIRST_MASK_LIMIT_S, "s to the first mask"),
        )
        for name, limit, unit in checks:
            if figures[name] > limit:
                load = max(figures["load_average"])
                failures.append(
                    f"[{extras}]: {figures[name]:.2f} {unit}, at most {limit} allowed "
                    f"(load average {load:.1f})"
                )
    return failures


def _run(command: list[Any]) -> str:
    """Return what a program printed; what it said besides is shown only if it failed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(
            f"`{' '.join(words)}` ended with exit code {done.returncode}; make it work and measure "
            f"again. It said: {done.stderr[-_SHOWN_CHARACTERS:]}"
        )
    return done.stdout
