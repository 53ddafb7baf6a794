"""Whether a quantised form is worth shipping: timed in turn with the others, on one backend.

The machine's mood changes from second to second, so every round runs all forms, each round in
another order, and forms are compared within their round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from refsam_bench.speed.timing import Ratio, Summary

MIN_SPEEDUP = 1.15
"""Of a quantised form over the backend's next best precision; less does not pay for its loss."""


@dataclass(frozen=True)
class SpeedGate:
    """What quantisation buys on a backend.

    Attributes:
        quantised: name of the quantised form.
        next_best: the fastest of the others.
        speedup: time of `next_best` over that of `quantised`, round by round.
        is_worth_shipping: the median of `speedup` is at least `MIN_SPEEDUP`.
        verdict: that as a sentence.
    """

    quantised: str
    next_best: str
    speedup: Ratio
    is_worth_shipping: bool
    verdict: str


def time_in_turn(
    forms: Mapping[str, Callable[[], object]],
    num_rounds: int,
    num_warmup: int = 1,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Run every form once per round, and return the seconds of each run after the warm-up.

    Args:
        forms: what to run, by name; each call waits until its work is done.
        num_rounds: rounds that count.
        num_warmup: rounds before them that do not.
        progress: called after every round.
    """
    names = list(forms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(num_warmup + num_rounds):
        first = index % len(names)
        for name in (*names[first:], *names[:first]):
            start = time.perf_counter()
            forms[name]()
            if index >= num_warmup:
                seconds[name].append(time.perf_counter() - start)
        progress()
    return seconds


def gate_of(seconds: Mapping[str, list[float]], quantised: str) -> SpeedGate:
    """Return what a quantised form buys, from the result of `time_in_turn`.

    Args:
        seconds: per form, at least two of them, the seconds of each round.
        quantised: name of one.
    """
    others = {name: np.median(runs) for name, runs in seconds.items() if name != quantised}
    next_best = min(others, key=lambda name: others[name])
    speedup = Ratio.of(seconds[next_best], seconds[quantised])
    is_worth_shipping = speedup.p50 >= MIN_SPEEDUP
    times = (
        f"{quantised} is {speedup.p50:.2f} times as fast as {next_best} "
        f"(p10 {speedup.p10:.2f}, p90 {speedup.p90:.2f})"
    )
    shipping = "worth shipping" if is_worth_shipping else f"below {MIN_SPEEDUP}: not worth shipping"
    verdict = f"{times}{':' if is_worth_shipping else ','} {shipping} on this backend"
    return SpeedGate(quantised, next_best, speedup, is_worth_shipping, verdict)


def summaries(seconds: Mapping[str, list[float]]) -> dict[str, Summary]:
    """Return the distribution of each form's time."""
    return {name: Summary.of(runs) for name, runs in seconds.items()}
