"""The steps of `make prove` about quantised graphs: what they run, and when they fail."""

import json
from pathlib import Path

import pytest

from refsam_prove.quantised import steps as prove_quantised
from refsam_prove.quantised.steps import plan_failures, plans, speed, speed_failures
from refsam_prove.steps import STEPS

GATE = {"quantised": "int8-bias", "next_best": "fp32-bias", "verdict": "told"}


def found(p50: float) -> dict:
    return {"preset": "vitb", "gate": GATE | {"speedup": {"p50": p50}}}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that steps run instead of being run."""
    seen: list[list[str]] = []

    def run(command: list[str], text: bool) -> str:
        seen.append(command[1:])
        graph = {"precision_warnings": [], "layers": {"QUANTIZE": {"INT8": 3}}}
        attention = {"num_attention": 8, "num_fused_attention": 8}
        plan = {"preset": "nano", "precision": "p", "num_layers": 3, "graph": graph | attention}
        return json.dumps(found(1.4) if "speed" in command else plan)

    monkeypatch.setattr(prove_quantised.subprocess, "check_output", run)
    return seen


def test_the_steps_are_those_of_the_issue():
    names = {f"int8-{what}-{preset}" for what in ("speed", "plans") for preset in ("nano", "vitb")}
    assert {*names, "int8-adapters-vitb"} == set(prove_quantised.STEPS) <= set(STEPS)
    assert prove_quantised.VITB_SPEEDUP == 1.5


def test_less_than_the_bound_is_a_failure():
    assert speed_failures(found(1.5), 1.5) == []
    assert speed_failures(found(0.9), None) == []
    assert speed_failures(found(1.49), 1.5) == [
        "vitb: int8-bias is 1.49 times as fast as fp32-bias, at least 1.5 expected"
    ]


def test_speed_is_measured_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, commands: list[list[str]]
):
    monkeypatch.setattr(prove_quantised, "has_vnni", lambda: True)
    record = speed("vitb", 8, 1.5)()
    assert commands == [["-m", "refsam_prove.quantised.trial", "speed", "vitb", "8", "2"]]
    assert record["gate"]["speedup"] == {"p50": 1.4}
    assert len(record["failures"]) == 1
    assert speed("vitb", 8)()["failures"] == []


def test_a_cpu_without_vnni_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, commands: list[list[str]]
):
    monkeypatch.setattr(Path, "read_text", lambda *a, **k: "flags : avx2 avx512f")
    record = speed("vitb", 8, 1.5)()
    assert commands == []
    assert record["skipped"] == (
        "this CPU has no VNNI, so integer products are not what they are made for"
    )


def test_vnni_is_found_in_the_flags(monkeypatch: pytest.MonkeyPatch):
    for flags, expected in (("avx2 avx512_vnni", True), ("avx_vnni", True), ("avx512f", False)):
        monkeypatch.setattr(Path, "read_text", lambda *a, flags=flags, **k: f"flags : {flags}")
        assert prove_quantised.has_vnni() is expected


def test_plans_of_both_schemes_are_built(commands: list[list[str]]):
    record = plans("nano")()
    program = ["-m", "refsam_prove.quantised.trial", "plans", "nano"]
    assert commands == [[*program, "int8-fp16"], [*program, "fp8-fp16"]]
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
