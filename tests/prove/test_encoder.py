"""The record of the image encoder on this CPU, on the smallest model."""

from importlib.util import find_spec

import pytest

from refsam_prove.encoder import FORMS, MIN_SHARES, MIN_SPEEDUPS, compare_encoders, failures
from refsam_prove.steps import STEPS


@pytest.mark.slow  # exports and calibrates
@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_every_form_that_runs_here_is_timed_against_the_plain_export() -> None:
    figures = compare_encoders("tiny", num_rounds=2, num_threads=1, matmul_size=64)
    assert figures["forms"].keys() | figures["skipped"].keys() == FORMS.keys()
    assert not figures["forms"].keys() & figures["skipped"].keys()
    assert {name for name in FORMS if "fp32" in name} < figures["forms"].keys()
    assert all("bf16" in name or "int8" in name for name in figures["skipped"])
    assert figures["flops"] > 0
    for name, row in figures["forms"].items():
        assert row["time"]["num_samples"] == row["plain_time"]["num_samples"] == 2
        assert row["speedup"]["p10"] <= row["speedup"]["p50"] <= row["speedup"]["p90"]
        assert ("share_of_peak" in row) == ("int8" not in name)
        assert row["relative_error"] < (1e-5 if "fp32" in name else 0.5)
    assert figures["forms"]["ort-cpu fp32 bias"]["relative_error"] == 0
    assert figures["environment"]["openvino"] != "unknown"


def row(speedup: float, share: float | None = None) -> dict[str, object]:
    return {
        "speedup": {"p10": 0.0, "p50": speedup, "p90": 99.0},
        **({} if share is None else {"share_of_peak": share}),
    }


def test_the_fastest_form_of_a_group_must_be_fast_enough() -> None:
    assert failures({"forms": {}}) == []
    good = {
        "ort-cpu fp32 bias": row(1.4, 0.1),
        "ort-cpu fp32 augmented": row(1.0, 0.1),
        "openvino-cpu fp32 bias": row(1.7, 0.95),
        "openvino-cpu bf16 bias": row(3.2, 0.81),
        "ort-cpu int8 bias": row(2.0),
        "openvino-cpu int8 bias": row(4.1),
    }
    assert failures({"forms": good}) == []
    bad = {
        "ort-cpu fp32 bias": row(1.3, 0.1),
        "openvino-cpu fp32 bias": row(1.7, 0.89),
        "openvino-cpu int8 bias": row(3.9),
    }
    assert failures({"forms": bad}) == [
        "ort-cpu fp32 bias: 1.30 times as fast as the plain export, at least 1.35",
        "openvino-cpu fp32 bias: 89% of the peak, at least 90%",
        "openvino-cpu int8 bias: 3.90 times as fast as the plain export, at least 4.0",
    ]


def test_every_bound_is_of_a_form() -> None:
    assert MIN_SHARES.keys() < MIN_SPEEDUPS.keys()
    assert all(any(group in name for name in FORMS) for group in MIN_SPEEDUPS)
    assert "encoder-vitb" in STEPS
