"""The speed gate: forms run in turn, compared within their round, gate_ofd by one bound."""

import pytest

from refsam_bench.speed import gate as speed_gate
from refsam_bench.speed.gate import MIN_SPEEDUP, gate_of, summaries, time_in_turn
from refsam_bench.speed.timing import Ratio


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless it is set forward."""
    now = [0.0]
    monkeypatch.setattr(speed_gate.time, "perf_counter", lambda: now[0])
    return now


def test_every_round_runs_every_form_each_time_in_another_order(clock: list[float]):
    calls: list[str] = []

    def form(name: str, seconds: float):
        def run() -> None:
            calls.append(name)
            clock[0] += seconds

        return run

    rounds: list[int] = []
    seconds = time_in_turn(
        {"a": form("a", 1), "b": form("b", 2), "c": form("c", 3)},
        num_rounds=3,
        num_warmup=1,
        progress=lambda: rounds.append(len(calls)),
    )
    assert "".join(calls) == "abcbcacababc"
    assert rounds == [3, 6, 9, 12]
    assert seconds == {"a": [1, 1, 1], "b": [2, 2, 2], "c": [3, 3, 3]}
    assert {n: (s.num_samples, s.p50_ms) for n, s in summaries(seconds).items()} == {
        "a": (3, 1000),
        "b": (3, 2000),
        "c": (3, 3000),
    }


def test_the_next_best_is_what_it_is_compared_with():
    gate = gate_of({"fp32": [4.0, 4.4], "fp16": [9.0, 9.0], "int8": [2.0, 2.0]}, "int8")
    assert (gate.quantised, gate.next_best, gate.is_worth_shipping) == ("int8", "fp32", True)
    assert gate.speedup.p50 == pytest.approx(2.1)
    assert gate.verdict == (
        "int8 is 2.10 times as fast as fp32 (p10 2.02, p90 2.18): worth shipping on this backend"
    )


def test_rounds_are_compared_with_themselves():
    """A slow second makes both sides slow; the medians of the sides would say 1.0."""
    gate = gate_of({"fp32": [1.5, 15.0, 1.5, 15.0], "int8": [1.0, 10.0, 1.0, 10.0]}, "int8")
    assert gate.speedup == Ratio(1.5, 1.5, 1.5)


@pytest.mark.parametrize("ratio", [MIN_SPEEDUP - 0.01, 0.5])
def test_too_little_is_reported_as_not_worth_shipping(ratio: float):
    gate = gate_of({"fp32": [ratio] * 3, "int8": [1.0] * 3}, "int8")
    assert not gate.is_worth_shipping
    assert gate.verdict == (
        f"int8 is {ratio:.2f} times as fast as fp32 (p10 {ratio:.2f}, p90 {ratio:.2f}), below "
        "1.15: not worth shipping on this backend"
    )


def test_the_bound_itself_is_enough():
    assert gate_of({"fp32": [MIN_SPEEDUP], "int8": [1.0]}, "int8").is_worth_shipping
