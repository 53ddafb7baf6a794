"""The steps of `make prove` about quantised graphs: what they run, and when they fail."""

from collections.abc import Callable
from pathlib import Path

import pytest

from refsam_prove.quantised import steps as prove_quantised
from refsam_prove.quantised.steps import plan_failures, plans, speed, speed_failures
from refsam_prove.quantised.trial import encoder_speed, rtx_plan
from refsam_prove.steps import STEPS

GATE = {"quantised": "int8-bias", "next_best": "fp32-bias", "verdict": "told"}


def figures(p50: float) -> dict:
    return {"preset": "vitb", "gate": GATE | {"speedup": {"p50": p50}}}


Calls = list[tuple[object, ...]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What steps call in processes of their own, instead of its being called."""
    seen: Calls = []

    def run(function: Callable[..., dict], *arguments: object) -> dict:
        seen.append((function, *arguments))
        graph = {"precision_warnings": [], "layers": {"QUANTIZE": {"INT8": 3}}}
        attention = {"num_attention": 8, "num_fused_attention": 8}
        plan = {"preset": "nano", "precision": "p", "num_layers": 3, "graph": graph | attention}
        return figures(1.4) if function is encoder_speed else plan

    monkeypatch.setattr(prove_quantised, "in_process", run)
    return seen


def test_the_steps_are_those_of_the_issue():
    names = {f"int8-{what}-{preset}" for what in ("speed", "plans") for preset in ("nano", "vitb")}
    assert {*names, "int8-adapters-vitb"} == set(prove_quantised.STEPS) <= set(STEPS)
    assert prove_quantised.VITB_SPEEDUP == 1.5


def test_less_than_the_bound_is_a_failure():
    assert speed_failures(figures(1.5), 1.5) == []
    assert speed_failures(figures(0.9), None) == []
    assert speed_failures(figures(1.49), 1.5) == [
        "vitb: int8-bias is 1.49 times as fast as fp32-bias, at least 1.5 expected"
    ]


def test_speed_is_measured_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, calls: Calls):
    monkeypatch.setattr(prove_quantised, "has_vnni", lambda: True)
    record = speed("vitb", 8, 1.5)
    assert calls == [(encoder_speed, "vitb", 8, 2)]
    assert record["gate"]["speedup"] == {"p50": 1.4}
    assert len(record["failures"]) == 1
    assert speed("vitb", 8)["failures"] == []


def test_a_cpu_without_vnni_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, calls: Calls
):
    monkeypatch.setattr(Path, "read_text", lambda *a, **k: "flags : avx2 avx512f")
    record = speed("vitb", 8, 1.5)
    assert calls == []
    assert record["skipped"] == (
        "this CPU has no VNNI, so integer products are not what they are made for"
    )


def test_vnni_is_found_in_the_flags(monkeypatch: pytest.MonkeyPatch):
    for flags, expected in (("avx2 avx512_vnni", True), ("avx_vnni", True), ("avx512f", False)):
        monkeypatch.setattr(Path, "read_text", lambda *a, flags=flags, **k: f"flags : {flags}")
        assert prove_quantised.has_vnni() is expected


def test_plans_of_both_schemes_are_built(calls: Calls):
    record = plans("nano")
    assert calls == [(rtx_plan, "nano", "int8-fp16"), (rtx_plan, "nano", "fp8-fp16")]
    assert set(record["plans"]) == {"int8-fp16", "fp8-fp16"}
    assert record["failures"] == []


def test_plans_that_quantise_or_fuse_too_little_are_failures():
    graph = {
        "precision_warnings": ["w"],
        "layers": {"QUANTIZE": {"INT8": 2}},
        "num_attention": 8,
        "num_fused_attention": 7,
    }
    plan = {"preset": "nano", "precision": "int8-fp16", "num_layers": 3, "graph": graph}
    assert plan_failures(plan) == [
        "nano, int8-fp16: w",
        "nano, int8-fp16: 2 layers quantised, 3 expected",
        "nano, int8-fp16: fused attention in 7 of 8 blocks",
    ]
