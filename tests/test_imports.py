"""What importing and asking for help pull in: nothing heavy."""

import subprocess
import sys

import pytest

HEAVY = (
    "av",
    "cuda",
    "jinja2",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "scipy",
    "segment_anything",
    "tensorrt",
    "tensorrt_rtx",
    "tensorrt_rtx_bindings",
    "torch",
    "transformers",
)
COMMANDS = {
    "refsam-run": "refsam_trt.run.cli",
    "refsam-doctor": "refsam_trt.doctor.cli",
    "refsam-export": "refsam_export.cli",
    "refsam-build": "refsam_engines.cli",
    "refsam-calibrate": "refsam_calibration.cli",
    "refsam-bench": "refsam_bench.cli",
    "refsam-train": "refsam_train.cli",
}
# A finder that comes first and refuses: as if the package were not installed.
BLOCK = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_runtime_pulls_in_nothing_heavy():
    done = run(f"import refsam_trt, sys; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_works_without_anything_heavy(name: str):
    code = f"{BLOCK}\nimport {COMMANDS[name]} as m; sys.argv[0] = {name!r}; m.main()"
    done = run(code, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: {name}")


@pytest.mark.parametrize(
    ("name", "arguments", "extra"),
    [
        (
            "refsam-export",
            ["--backbone", "tiny", "--random-init", "0", "--output", "never"],
            "export",
        ),
        ("refsam-bench", ["parity", "never"], "export,bench"),
        (
            "refsam-calibrate",
            ["never", "--clips", "never.toml", "--output", "never"],
            "calibrate",
        ),
        (
            "refsam-build",
            ["never", "--backend", "tensorrt-rtx", "--precision", "fp32", "--output", "never"],
            "tensorrt-rtx",
        ),
    ],
)
def test_a_missing_extra_is_named_with_the_line_that_installs_it(name, arguments, extra, tmp_path):
    code = f"{BLOCK}\nimport os; os.chdir({str(tmp_path)!r})\n"
    code += f"import {COMMANDS[name]} as m; sys.argv[0] = {name!r}; m.main()"
    done = run(code, *arguments)
    assert done.returncode == 2
    assert f'pip install "refsam-trt[{extra}]"' in done.stderr
    assert not list(tmp_path.iterdir())
