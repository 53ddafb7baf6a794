"""What `make prove` says of installations, and which Pythons it finds."""

import os
import sys
import sysconfig
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import fake_bundle
import pytest

from refsam_prove.footprint import first_mask
from refsam_prove.footprint import measure as footprint
from refsam_prove.footprint.interpreters import find_python
from refsam_prove.footprint.measure import FootprintRequest
from refsam_trt.errors import UsageError

HERE = sys.version_info[:3]


@pytest.fixture
def pythons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on an otherwise empty PATH; there is no pyenv."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.delenv("REFSAM_PYTHONS", raising=False)
    return tmp_path


def stand_in(path: Path, answer: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return path


def test_finds_the_newest_release_wherever_it_lies(pythons, monkeypatch):
    stand_in(pythons / "python3.99", '["cpython", "candidate", [3, 99, 0]]')
    stand_in(pythons / "python3.98", '["pypy", "final", [3, 98, 0]]')
    stand_in(pythons / "python3.97", "no such version installed")
    stand_in(pythons / "python3.9", '["cpython", "final", [3, 9, 9]]')
    stand_in(pythons / "python3.20-config", '["cpython", "final", [3, 96, 0]]')
    on_path = stand_in(pythons / "python3.20", '["cpython", "final", [3, 20, 9]]')
    below_pyenv = stand_in(
        pythons / "pyenv/versions/3.20.10/bin/python3.20", '["cpython", "final", [3, 20, 10]]'
    )
    assert find_python(None) == (below_pyenv, (3, 20, 10))
    below_pyenv.unlink()
    assert find_python((3, 20)) == (on_path, (3, 20, 9))
    monkeypatch.setenv("REFSAM_PYTHONS", os.pathsep.join(["", sys.executable]))
    assert find_python(HERE[:2]) == (Path(sys.executable), HERE)


@pytest.mark.parametrize(("wanted", "shown"), [(None, "3.10 or newer"), ((3, 10), "3.10")])
def test_says_how_to_provide_a_python(pythons, wanted, shown):
    with pytest.raises(UsageError, match=f"no CPython {shown} on this machine") as caught:
        find_python(wanted)
    assert "environment variable REFSAM_PYTHONS" in str(caught.value)


def test_sizes_are_those_of_the_files():
    site = Path(sysconfig.get_paths()["purelib"])
    sizes = footprint.sizes_of_distributions(site)
    name = f"numpy {metadata.version('numpy')}"
    walked = sum(
        path.stat().st_size
        for folder in (*site.glob("numpy"), *site.glob("numpy.libs"), *site.glob("numpy-*"))
        for path in folder.rglob("*")
        if path.is_file()
    )
    # Only the scripts and what other processes compile meanwhile lie elsewhere.
    assert sizes[name] == pytest.approx(walked, rel=0.05)
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)


def test_a_model_that_ships_is_not_counted(tmp_path: Path):
    sizes = {"refsam_trt/engine.py": 10, "refsam_trt/models/nano/a.data": 1000}
    info = tmp_path / "refsam_trt-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: refsam-trt\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in sizes))
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    assert footprint.sizes_of_distributions(tmp_path) == {"refsam-trt 1.0": 10}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], dict[str, Any]]:
    """The figures of this very environment as if it were a fresh one, one run."""
    monkeypatch.setattr(footprint, "_build_wheel", lambda folder: folder)
    monkeypatch.setattr(footprint, "_install", lambda *_: Path(sys.executable))
    monkeypatch.setattr(footprint, "find_python", lambda wanted: (Path(sys.executable), HERE))
    monkeypatch.setattr(footprint, "NUM_RUNS", 1)

    def measure(limit_mb: float) -> dict[str, Any]:
        request = FootprintRequest(None, {"cpu": limit_mb})
        return footprint.measure_footprint(request, fake_bundle.make_bundle)

    return measure


def test_stages_add_up_and_limits_are_checked(measured, monkeypatch):
    monkeypatch.setattr(footprint, "FIRST_MASK_LIMIT_S", 1e9)
    record = measured(1e9)
    figures = record["extras"]["cpu"]
    assert record["failures"] == []
    assert sum(figures["stages_s"].values()) == pytest.approx(figures["first_mask_s"])
    assert min(figures["stages_s"].values()) > 0
    assert figures["cpu_s"] > 0.1
    assert figures["installed_mb"] == sum(figures["bytes_per_distribution"].values()) / 1e6
    assert 30 < figures["resident_mb"] < 1000
    assert figures["shipped_models_mb"] == 0
    monkeypatch.setattr(footprint, "FIRST_MASK_LIMIT_S", 0.01)
    too_large, too_slow = measured(1.5)["failures"]
    assert "MB installed, at most 1.5 allowed" in too_large
    assert "s to the first mask, at most 0.01 allowed" in too_slow


def test_what_is_timed_imports_only_the_runtime(tmp_path):
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1])['main'](sys.argv[2]); "
        "assert not {'torch', 'onnx', 'refsam_export', 'av'} & set(sys.modules)"
    )
    bundle = fake_bundle.make_bundle(tmp_path / "bundle")
    footprint._run([sys.executable, "-c", code, first_mask.__file__, bundle])
    assert first_mask.resident_mb() > 10


def test_a_failing_program_is_shown_with_what_it_said():
    code = "import sys; sys.exit('no room')"
    with pytest.raises(UsageError, match=r"exit code 1; make it work .* It said: no room"):
        footprint._run([sys.executable, "-c", code])
