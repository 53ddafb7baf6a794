"""What `auto` stands for: measured once, kept, checked when read; ONNX Runtime in all doubt."""

import logging
import os
import stat
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fake_bundle
import msgspec
import numpy as np
import pytest

import refsam_trt
from refsam_trt.backends import cpu
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.errors import BackendError, UsageError
from refsam_trt.session import fastest
from refsam_trt.session.fastest import Measurement, auto_backend

VARIANT = "fp32-plain-baseline"
LOGITS = [np.ones((8, 8), np.float32), np.full((8, 8), -2, np.float32)]


class Machine:
    """Backends without hardware: seconds of a frame, factor on the logits; counts the runs."""

    def __init__(self) -> None:
        self.seconds: dict[str, float | Exception] = {"ort-cpu": 2.0, "openvino-cpu": 1.0}
        self.factor = 1.0
        self.runs: list[str] = []
        self.versions = {"openvino": "2026.4.1", "onnxruntime": "1.31.1"}

    def run(self, bundle: Bundle, key: Any, name: str) -> tuple[float, list[np.ndarray]]:
        self.runs.append(name)
        seconds = self.seconds[name]
        if isinstance(seconds, Exception):
            raise seconds
        return seconds, [a * self.factor if name == "openvino-cpu" else a for a in LOGITS]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    pretended = Machine()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fastest, "_run", pretended.run)
    monkeypatch.setattr(fastest, "MIN_FLOPS", 0)
    monkeypatch.setattr(fastest, "IS_ON_TRIAL", False)
    monkeypatch.setattr(
        fastest, "version_of", lambda name: pretended.versions.get(name, fastest.UNKNOWN)
    )
    return pretended


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(fake_bundle.make_bundle(tmp_path_factory.mktemp("bundles") / "baseline"))


def records() -> list[Path]:
    return sorted(fastest.records_folder().glob("*.json"))


def measured_again(machine: Machine, bundle: Bundle) -> bool:
    machine.runs.clear()
    auto_backend(bundle, VARIANT, 2)
    return bool(machine.runs)


def test_on_trial_nothing_is_measured_and_that_is_told(
    machine: Machine,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(fastest, "IS_ON_TRIAL", True)
    with caplog.at_level(logging.INFO, "refsam_trt"):
        assert auto_backend(bundle, VARIANT, 2) == "ort-cpu"
    assert caplog.messages == [
        "backend auto is ort-cpu: openvino-cpu is on trial, and runs where it is asked for by name"
    ]
    assert machine.runs == []


def test_it_is_measured_once_and_told_every_time(
    machine: Machine, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "refsam_trt"):
        assert auto_backend(bundle, VARIANT, 2) == "openvino-cpu"
        assert auto_backend(bundle, VARIANT, 2) == "openvino-cpu"
    assert machine.runs == ["ort-cpu", "openvino-cpu"]
    (record,) = records()
    told = (
        "backend auto is openvino-cpu: a frame takes 1 s on openvino-cpu, 2 s on ort-cpu; logits "
        f"differ by 0 ({record})"
    )
    once = "ort-cpu and openvino-cpu are measured once for this bundle on this CPU"
    assert caplog.messages == [once, told, told]
    if os.name == "posix":
        assert stat.S_IMODE(record.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("seconds", "factor", "reason"),
    [
        (1.9, 1.0, "a frame takes 1.9 s on openvino-cpu, 2 s on ort-cpu; logits differ by 0"),
        (1.0, 1.01, "2 s on ort-cpu, but logits differ by 0.01, allowed is 0.001"),
        (1.0, float("nan"), "2 s on ort-cpu, but logits differ by no number, allowed is 0.001"),
        (BackendError("no AVX2"), 1.0, "openvino-cpu does not run it: no AVX2"),
    ],
)
def test_it_must_be_faster_and_equal(
    machine: Machine,
    bundle: Bundle,
    caplog: pytest.LogCaptureFixture,
    seconds: float | Exception,
    factor: float,
    reason: str,
) -> None:
    machine.seconds["openvino-cpu"], machine.factor = seconds, factor
    with caplog.at_level(logging.INFO, "refsam_trt"):
        assert auto_backend(bundle, VARIANT, 2) == "ort-cpu"
        assert not measured_again(machine, bundle)
    assert caplog.messages[-1].startswith("backend auto is ort-cpu: ")
    assert reason in caplog.messages[-1]


def test_what_it_depends_on_is_measured_anew(
    machine: Machine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    auto_backend(bundle, VARIANT, 2)
    assert not measured_again(machine, bundle)
    machine.versions["openvino"] = "2027.0.0"
    assert measured_again(machine, bundle)
    machine.versions["onnxruntime"] = "2.0.0"
    assert measured_again(machine, bundle)
    monkeypatch.setattr(cpu, "processor", lambda: "another")
    assert measured_again(machine, bundle)
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"abacus"}))
    assert measured_again(machine, bundle)
    assert not measured_again(machine, bundle)
    machine.runs.clear()
    auto_backend(bundle, VARIANT, 1)
    assert machine.runs
    other = open_bundle(fake_bundle.make_bundle(tmp_path / "other", preset="other"))
    assert measured_again(machine, other)
    assert len(records()) == 7


def changed(**fields: Any) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        return msgspec.json.encode(msgspec.json.decode(content) | fields)

    return change


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-9],
        lambda content: b"",
        lambda content: content.ljust(5000),
        lambda content: content.replace(b'"variant":"fp32', b'"variant":"fp99'),
        changed(extra=1),
        changed(schema=2),
        changed(ort_s=-1.0),
        changed(openvino_s=0.0),
        changed(error=-1e-6),
        changed(error="small"),
        changed(allowed=100.0),
    ],
)
def test_a_record_that_was_tampered_with_is_measured_anew(
    machine: Machine,
    bundle: Bundle,
    spoil: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    auto_backend(bundle, VARIANT, 2)
    (record,) = records()
    sound = record.read_bytes()
    record.write_bytes(spoil(sound))
    with caplog.at_level(logging.INFO, "refsam_trt"):
        assert measured_again(machine, bundle)
    assert f"{record}: measured anew (" in caplog.messages[0]
    assert record.read_bytes() == sound
    assert not measured_again(machine, bundle)


def test_a_record_under_another_name_does_not_count(
    machine: Machine, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    auto_backend(bundle, VARIANT, 2)
    (two,) = records()
    auto_backend(bundle, VARIANT, 1)
    (one,) = set(records()) - {two}
    two.write_bytes(one.read_bytes())
    with caplog.at_level(logging.INFO, "refsam_trt"):
        assert measured_again(machine, bundle)
    assert f"{two}: measured anew (it is of something else)" in caplog.messages[0]


def test_few_records_are_kept_and_foreign_files_stay(
    machine: Machine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastest, "MAX_RECORDS", 3)
    fastest.records_folder().mkdir(parents=True)
    (fastest.records_folder() / "notes.json").write_text("mine")
    for num_threads in range(1, 6):
        auto_backend(bundle, VARIANT, num_threads)
        time.sleep(0.01)  # ages are told by the file system's clock
    assert len(records()) == 4
    assert (fastest.records_folder() / "notes.json").read_text() == "mine"
    kept = list(fastest.kept_measurements(fastest.records_folder()))
    assert {measurement.key.num_threads for measurement in kept} == {3, 4, 5}
    assert isinstance(kept[0], Measurement)


def test_where_nothing_can_be_kept_nothing_is_measured(
    machine: Machine,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def homeless() -> Path:
        raise UsageError("this account has no home folder")

    with caplog.at_level(logging.INFO, "refsam_trt"):
        (tmp_path / "cache").write_text("in the way")
        assert auto_backend(bundle, VARIANT, 2) == "ort-cpu"
        monkeypatch.setattr(fastest, "user_cache_folder", homeless)
        assert auto_backend(bundle, VARIANT, 2) == "ort-cpu"
    assert machine.runs == []
    assert all("ort-cpu: no measurement can be kept (" in line for line in caplog.messages)


def test_a_disk_that_is_full_costs_another_measurement(
    machine: Machine,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fastest, "atomic_path", full)
    with caplog.at_level(logging.INFO, "refsam_trt"):
        assert auto_backend(bundle, VARIANT, 2) == "openvino-cpu"
    assert any("not kept, so it is measured again next time" in m for m in caplog.messages)
    assert measured_again(machine, bundle)


def test_a_bundle_that_nothing_runs_is_left_to_load(
    machine: Machine, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    machine.seconds["ort-cpu"] = BackendError("broken")
    with caplog.at_level(logging.INFO, "refsam_trt"):
        assert auto_backend(bundle, VARIANT, 2) == "ort-cpu"
    assert caplog.messages[-1].endswith("the bundle cannot be measured (broken)")
    assert records() == []


def test_small_models_are_not_measured(
    machine: Machine,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The model that ships among them: its first start stays as fast as it is."""
    monkeypatch.setattr(fastest, "MIN_FLOPS", 50e9)
    with caplog.at_level(logging.INFO, "refsam_trt"):
        for _ in range(2):
            with refsam_trt.load("nano", num_threads=1) as engine:
                assert engine.backend == "ort-cpu"
    assert machine.runs == []
    assert "backend auto is ort-cpu: 2.05 GFLOP a frame, below 50 nothing" in caplog.messages[0]
    assert not fastest.records_folder().exists()


def test_without_openvino_nothing_changes(
    machine: Machine, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    del machine.versions["openvino"]
    with caplog.at_level(logging.INFO, "refsam_trt"):
        assert auto_backend(bundle, VARIANT, 2) == "auto"
    assert (machine.runs, caplog.messages) == ([], [])


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
@pytest.mark.parametrize("advantage", [0.0, 1e9])
def test_what_is_measured_is_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Bundle, advantage: float
) -> None:
    """On real backends; whichever is declared the faster one is loaded, for any later start."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fastest, "MIN_FLOPS", 0)
    monkeypatch.setattr(fastest, "MIN_ADVANTAGE", advantage)
    expected = "openvino-cpu" if advantage == 0 else "ort-cpu"
    for _ in range(2):
        with refsam_trt.load(bundle.folder, num_threads=1) as engine:
            assert engine.backend == expected
    (measurement,) = fastest.kept_measurements(fastest.records_folder())
    assert (measurement.backend, measurement.key.variant) == (expected, VARIANT)
    assert measurement.error is not None
    assert measurement.error < 1e-5
    assert min(measurement.ort_s, measurement.openvino_s or 0) > 0
