"""`refsam-doctor`: what it finds here, and what it says of machines that are not like this one."""

import ctypes
import json
import platform
import signal
import subprocess
import sys
from types import SimpleNamespace

import fake_cuda
import msgspec
import numpy
import pytest
from commands_in_process import Commands
from fake_tensorrt import fake_tensorrt

from refsam_trt.backends import cpu
from refsam_trt.backends.cuda import driver
from refsam_trt.doctor import cli as doctor
from refsam_trt.doctor import probe
from refsam_trt.session import fastest


@pytest.fixture
def examined(monkeypatch, capfd):
    """Run the command, in plain words or as JSON."""
    commands = Commands(monkeypatch, capfd)
    return lambda *arguments: commands(doctor.main, *arguments)


@pytest.fixture
def answers(monkeypatch) -> dict[tuple[str, ...], dict]:
    """Answers of the probes, to be changed by a test: a machine without anything."""
    replies: dict[tuple[str, ...], dict] = {
        ("onnxruntime",): {"error": "no ONNX Runtime"},
        ("video",): {"error": "no PyAV"},
        ("cuda",): {"error": "not found (libcuda.so.1)"},
        ("tensorrt", "tensorrt"): {"error": "no TensorRT here"},
        ("tensorrt", "tensorrt-rtx"): {"error": "no TensorRT-RTX here"},
        ("backend", "ort-cuda"): {"error": "no CUDA here"},
        ("backend", "openvino-cpu"): {"error": "no OpenVINO here"},
        ("backend", "ort-cpu"): {"error": "no CPU here"},
    }
    monkeypatch.setattr(probe, "ask", lambda *question: replies[question])
    return replies


def test_this_machine_has_a_backend_that_works(examined):
    ended = examined("--json")
    assert (ended.code, ended.err) == (0, "")
    report = json.loads(ended.out)
    assert list(report["backends"]) == [
        *("tensorrt", "tensorrt-rtx", "ort-cuda", "openvino-cpu", "ort-cpu")
    ]
    assert report["backends"]["ort-cpu"]["works"] is True
    assert report["backends"]["ort-cpu"]["reason"].startswith("its test graph ran; fp32 runs as")
    assert report["python"] == platform.python_version()
    assert report["packages"]["numpy"] == numpy.__version__
    assert "CPUExecutionProvider" in report["onnxruntime"]["providers"]
    assert {"h264", "mjpeg"} <= set(report["video"]["decoders"])
    assert report["video"]["encoders"] == ["libx264"]
    assert 1 <= report["cpu"]["num_usable_cores"] <= report["cpu"]["num_cores"]


def test_nothing_works_and_every_reason_is_given(examined, answers, monkeypatch):
    monkeypatch.setattr(doctor, "_is_installed", lambda module: False)
    ended = examined()
    assert (ended.code, ended.err) == (2, "")
    lines = ended.out.splitlines()
    assert "ONNX Runtime: no ONNX Runtime" in lines
    assert "video: no PyAV" in lines
    assert "CUDA driver: not found (libcuda.so.1)" in lines
    assert "module tensorrt_rtx_bindings: not installed" in lines
    assert "  ort-cpu      no     no CPU here" in lines
    assert "  ort-cuda     no     no CUDA here" in lines
    assert "  tensorrt     no     no TensorRT here" in lines


def test_one_backend_that_works_is_enough(examined, answers):
    answers["backend", "ort-cuda"] = {"precision_notes": "fp16 runs as written"}
    answers["cuda",] = {
        "driver_version": "13.0",
        "devices": [{"name": "Orin", "compute_capability": "8.7", "memory_mib": 30_000}],
    }
    ended = examined()
    assert ended.code == 0
    assert "  ort-cuda     works  its test graph ran; fp16 runs as written\n" in ended.out
    assert "CUDA driver: for CUDA 13.0; Orin (compute capability 8.7, 30000 MiB)\n" in ended.out


def test_a_backend_that_runs_plans_is_opened_but_not_tried(examined, answers):
    answers["tensorrt", "tensorrt"] = {"version": "10.3.0", "gpu": "Orin"}
    ended = examined()
    assert ended.code == 0
    expected = "  tensorrt     works  version 10.3.0 opened on Orin; plans are tried when loaded\n"
    assert expected in ended.out


def test_tensorrt_is_opened_only_where_there_is_a_driver(monkeypatch):
    trt = fake_tensorrt("10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(driver, "describe", lambda: {"error": "not found (libcuda.so.1)"})
    assert "CUDA driver not found" in probe.tensorrt("tensorrt")["error"]
    assert trt.calls == []
    fake_cuda.install(monkeypatch)
    assert probe.tensorrt("tensorrt") == {"version": "10.3.0", "gpu": "Some GPU"}
    monkeypatch.setattr(trt, "Runtime", lambda logger: None)
    expected = "tensorrt 10.3.0 makes no runtime: it gave no reason"
    assert probe.tensorrt("tensorrt") == {"error": expected}
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert 'pip install "refsam-trt[tensorrt]"' in probe.tensorrt("tensorrt")["error"]


def test_both_onnxruntimes_at_once_are_a_problem(examined, answers, monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "1.0")
    assert "PROBLEM: onnxruntime and onnxruntime-gpu are both installed" in examined().out


@pytest.mark.parametrize(
    ("cpuinfo", "features", "has_int8"),
    [
        (
            "model name\t: X\nflags\t\t: fpu avx2 fma avx_vnni\n\nflags : sve\n",
            ["avx2", "fma"],
            True,
        ),
        ("model name\t: X\nflags\t\t: sse2\n", [], False),
        ("Features\t: fp asimd\n", ["asimd"], False),
        ("Features\t: asimd asimddp i8mm\n", ["asimd"], True),
        ("", None, None),
    ],
)
def test_features_of_the_cpu(monkeypatch, tmp_path, cpuinfo, features, has_int8):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(cpu, "Path", lambda path: tmp_path / "cpuinfo")
    report = doctor._cpu()
    assert report["has_int8_dot_product"] is has_int8
    if features is None:
        assert report["features"] is None
    else:
        assert [
            name for name in report["features"] if name not in doctor._INT8_FEATURES
        ] == features


def test_a_probe_that_dies_is_an_answer(monkeypatch):
    run = subprocess.run

    def dying(command, **options):
        return run([sys.executable, "-c", code], **options)

    monkeypatch.setattr(subprocess, "run", dying)
    code = f"import os; os.kill(os.getpid(), {signal.SIGILL.value})"
    assert probe.ask("cuda") == {
        "error": "the probe was killed by SIGILL (this CPU lacks an instruction that the package "
        "was built for)"
    }
    code = "raise ImportError('libfoo.so')"
    assert probe.ask("cuda") == {
        "error": "the probe ended with exit code 1: ImportError: libfoo.so"
    }
    code = "import time; time.sleep(30)"
    assert probe.ask("cuda", timeout_s=0.3) == {"error": "gave no answer within 0.3 s"}


class FakeDriver:
    """A CUDA driver as ctypes shows one: functions that fill what they are pointed to."""

    init_code = 0

    def cuInit(self, flags):
        return self.init_code

    def cuGetErrorName(self, code, name):
        name._obj.value = b"CUDA_ERROR_NO_DEVICE"
        return 0

    def cuDriverGetVersion(self, version):
        version._obj.value = 12_040
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device, index):
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name, size, device):
        name.value = b"NVIDIA H200"
        return 0

    def cuDeviceTotalMem_v2(self, num_bytes, device):
        num_bytes._obj.value = 139 * 2**30
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0


def test_the_driver_is_asked_for_its_devices(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver())
    device = {"name": "NVIDIA H200", "compute_capability": "9.0", "memory_mib": 139 * 1024}
    assert driver.describe() == {"driver_version": "12.4", "devices": [device]}


def test_a_driver_that_fails_is_named(monkeypatch):
    failing = FakeDriver()
    failing.init_code = 100
    monkeypatch.setattr(ctypes, "CDLL", lambda name: failing)
    assert driver.describe() == {"error": "cuInit failed with CUDA_ERROR_NO_DEVICE"}


def test_no_driver_and_a_driver_of_another_kind(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert "cannot open shared object file" in driver.describe()["error"]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert driver.describe()["error"].startswith("not found (")


def test_missing_libraries_are_named_with_the_line_that_installs_them(monkeypatch):
    for name in ("av", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    assert 'pip install "refsam-trt[video]"' in probe.video()["error"]
    assert 'pip install "refsam-trt[cpu]"' in probe.onnxruntime()["error"]
    assert 'pip install "refsam-trt[cpu]"' in probe.backend("ort-cpu")["error"]


def test_a_backend_that_computes_nonsense_does_not_work(monkeypatch):
    from refsam_trt.backends.ort import OrtCpuBackend

    monkeypatch.setattr(OrtCpuBackend, "download", lambda self, buffer: buffer.array + 1)
    assert probe.backend("ort-cpu") == {
        "error": "computed [1.0, 3.0, 5.0, 7.0] instead of [0.0, 2.0, 4.0, 6.0]"
    }


def test_help_tells_the_exit_codes(examined):
    assert "Exit codes: 0 at least one backend works, 2 none does." in examined("--help").out


def test_what_auto_measured_is_listed(examined, answers, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = fastest.records_folder()
    assert f"backend auto: nothing measured yet in {folder}" in examined().out
    key = fastest.Key("b" * 64, "fp32-bias", "a CPU", "0" * 16, 2, None, "1.31.1", "2026.4.1")
    measurement = fastest.Measurement(1, key, 6.89, 5.68, 2.7e-6, 1e-3)
    folder.mkdir(parents=True)
    (folder / "fastest-1.json").write_bytes(msgspec.json.encode(measurement))
    (folder / "fastest-2.json").write_text("damaged")
    assert (
        f"backend auto: what was measured is kept in {folder}\n"
        "  bundle bbbbbbbbbbbb, fp32-bias: openvino-cpu; a frame takes 5.68 s on openvino-cpu, "
        "6.89 s on ort-cpu; logits differ by 3e-06\n"
    ) in examined().out
    (listed,) = json.loads(examined("--json").out)["auto"]["measured"]
    assert (listed["backend"], listed["cpu"], listed["num_cores"]) == ("openvino-cpu", "a CPU", 2)
