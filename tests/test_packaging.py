"""The wheel holds exactly our six packages and what they read, and installs by itself."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "refsam_trt" / "models"
PACKAGES = {
    "refsam_trt",
    "refsam_export",
    "refsam_engines",
    "refsam_calibration",
    "refsam_bench",
    "refsam_train",
}

PROGRAMS = {
    "refsam_bench/cli.py",
    "refsam_bench/gpu/worker.py",
    "refsam_calibration/cli.py",
    "refsam_train/cli.py",
    "refsam_trt/doctor/probe.py",
}
"""Commands, and what commands start; whatever only runs in a checkout lies in `prove/`."""
PAGE_FILES = ("report.html", "parts.html", "report.css")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source archive, as releases are."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (found,) = folder.glob("*.whl")
    return found


def test_wheel_holds_exactly_our_packages(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    assert not [name for name in names if name.startswith("tests/") or "/test" in name]


def test_wheel_holds_no_program_that_only_runs_in_a_checkout(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    modules = [name for name in archive.namelist() if name.endswith(".py")]
    programs = {name for name in modules if b'__name__ == "__main__"' in archive.read(name)}
    assert programs == PROGRAMS
    assert "refsam_export/assets/nano_words.txt" not in archive.namelist()


def test_wheel_holds_every_file_the_code_reads(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    kept = (
        "refsam_trt/py.typed",
        "refsam_export/assets/nano_tokenizer.json",
        *(f"refsam_bench/report/page_files/{name}" for name in PAGE_FILES),
    )
    assert not [name for name in kept if name not in names]


def test_wheel_holds_the_models_that_ship(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    tree = {p.relative_to(ROOT).as_posix() for p in MODELS.rglob("*") if p.is_file()}
    assert {name for name in names if name.startswith("refsam_trt/models/")} == tree


def test_wheel_installs_in_a_fresh_environment(wheel: Path, tmp_path: Path):
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--quiet", str(wheel)], check=True)
    # Dependencies come from the environment of the tests: nothing is downloaded here.
    dependencies = sysconfig.get_paths()["purelib"]
    code = (
        f"import sys; sys.path.append({dependencies!r}); import refsam_trt; "
        "print(refsam_trt.__version__, refsam_trt.__file__)"
    )
    done = subprocess.run(
        [str(python), "-I", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    version, _, file = done.stdout.strip().partition(" ")
    assert version == wheel.name.split("-")[1]
    assert str(tmp_path) in file
    help_text = subprocess.run(
        [str(tmp_path / "env" / "bin" / "refsam-run"), "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": dependencies},
    )
    assert "refsam-run" in help_text.stdout
