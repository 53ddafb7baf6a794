"""Which layers to quantise: every unit is judged alone, then the largest set in a budget found.

The search assumes that a longer prefix of the ranking costs more, which holds roughly; what it
returns was judged as a whole, so it is within the budget whether that holds or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from refsam_calibration.gate.judge import Judgement, LayerJudge
from refsam_calibration.quantise.layers import Unit
from refsam_trt.errors import AccuracyGateError

_NAMED = 5
SHARE_ROUNDING = 1e-9
"""Of a share that is a sum of many."""


@dataclass(frozen=True)
class RatedUnit:
    """A unit and what it costs to quantise it alone."""

    unit: Unit
    judgement: Judgement


@dataclass(frozen=True)
class QuantisedSet:
    """The largest set that was found, by units of the ranking.

    `judgement` is that of the whole set; `share` its part of the FLOPs of the encoder's linears.
    """

    chosen: tuple[RatedUnit, ...]
    left_out: tuple[RatedUnit, ...]
    judgement: Judgement

    @property
    def share(self) -> float:
        """Part of the FLOPs of all linear layers of the encoder, 0 to 1."""
        return sum(rated.unit.share for rated in self.chosen)

    @property
    def layers(self) -> tuple[str, ...]:
        """Module paths of the quantised layers."""
        return layers_of(self.chosen)


def rate(units: Sequence[Unit], judge: LayerJudge) -> list[RatedUnit]:
    """Judge every unit alone and return them ranked: what costs least for its share comes first.

    Args:
        units: at least one.
        judge: of data apart from calibration and evaluation; few videos will do.
    """
    rated = [
        RatedUnit(unit, judge.judge(unit.layers, f"unit {number} of {len(units)}, {unit.name}"))
        for number, unit in enumerate(units, 1)
    ]
    return sorted(rated, key=lambda each: each.judgement.mask_iou_loss / each.unit.share)


def largest_set(
    ranking: Sequence[RatedUnit],
    judge: LayerJudge,
    budget_points: float,
    min_share: float,
    progress: Callable[[str], None],
) -> QuantisedSet:
    """Return the largest set of units that loses at most `budget_points` of J&F.

    All units first; if that is too much, the longest prefix of the ranking by bisection, and then
    every later unit that still fits.

    Args:
        ranking: from `rate`.
        judge: of the data apart from calibration and evaluation.
        budget_points: of J&F, 0.01 each.
        min_share: of the FLOPs of the encoder's linear layers, 0 to 1, below which the set is
            refused.
        progress: called with a line for each set that was judged.

    Raises:
        AccuracyGateError: no unit fits, or those that do are less than `min_share`.
    """

    def judged(units: Sequence[RatedUnit]) -> Judgement:
        label = f"{len(units)} of {len(ranking)} units"
        judgement = judge.judge(layers_of(units), label)
        progress(f"{label}: {judgement.drop_points:+.2f} points lost")
        return judgement

    everything = judged(ranking)
    if everything.drop_points <= budget_points:
        return _accepted(QuantisedSet(tuple(ranking), (), everything), budget_points, min_share)
    fits, best, breaks = 0, everything, len(ranking)
    while breaks - fits > 1:
        middle = (fits + breaks) // 2
        tried = judged(ranking[:middle])
        if tried.drop_points <= budget_points:
            fits, best = middle, tried
        else:
            breaks = middle
    quantised = list(ranking[:fits])
    for rated in ranking[fits + 1 :]:
        tried = judged([*quantised, rated])
        if tried.drop_points <= budget_points:
            quantised.append(rated)
            best = tried
    left_out = tuple(rated for rated in ranking if rated not in quantised)
    return _accepted(QuantisedSet(tuple(quantised), left_out, best), budget_points, min_share)


def layers_of(units: Sequence[RatedUnit]) -> tuple[str, ...]:
    """Return the module paths of all layers of some units."""
    return tuple(name for rated in units for name in rated.unit.layers)


def costliest(units: Sequence[RatedUnit]) -> str:
    """Return the names of the units that cost most when quantised alone, with what they cost."""
    worst = sorted(units, key=lambda each: -each.judgement.mask_iou_loss)[:_NAMED]
    return ", ".join(
        f"{each.unit.name} (alone: mask IoU {each.judgement.mask_iou:.4f}, "
        f"{each.judgement.drop_points:+.2f} points lost)"
        for each in worst
    )


def _accepted(largest: QuantisedSet, budget_points: float, min_share: float) -> QuantisedSet:
    if largest.chosen and largest.share >= min_share - SHARE_ROUNDING:
        return largest
    what = f"layers with {largest.share:.1%} of the linear FLOPs" if largest.chosen else "no layer"
    asked = f", --min-share asks for {min_share:.1%}" if largest.chosen else ""
    raise AccuracyGateError(
        f"within {budget_points:g} points of J&F on the search's videos {what} can be quantised"
        f"{asked}; the layers that break it: {costliest(largest.left_out)}; allow more points, or "
        "try another --method, --alpha or more clips; no bundle was written"
    )
