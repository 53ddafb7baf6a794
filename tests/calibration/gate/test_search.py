"""The search for the largest set within a budget, on costs that are made up."""

from collections.abc import Iterable

import pytest

from refsam_calibration.gate.judge import Judgement, WorstFrame
from refsam_calibration.gate.search import largest_set, layers_of, rate
from refsam_calibration.quantise.layers import Unit
from refsam_trt.errors import AccuracyGateError


class Costs:
    """A judge for whom the costs of layers, in points, add up; it notes what it was asked."""

    def __init__(self, costs: dict[str, float], extra: dict[frozenset[str], float] | None = None):
        self.costs = costs
        self.extra = extra or {}
        self.asked: list[tuple[str, ...]] = []

    def judge(self, layers: Iterable[str], label: str) -> Judgement:
        chosen = tuple(sorted(layers))
        self.asked.append(chosen)
        cost = sum(self.costs[name] for name in chosen) + self.extra.get(frozenset(chosen), 0.0)
        return Judgement(
            num_layers=len(chosen),
            content_sha256="",
            reference_j_and_f=0.8,
            j_and_f=0.8 - cost / 100,
            mask_iou=1.0 - cost / 50,
            worst=(WorstFrame("a", "b", "c", 0.5),),
        )


def units(**shares: float) -> list[Unit]:
    return [Unit(name, (name,), share) for name, share in shares.items()]


def found_in(judge: Costs, shares: dict[str, float], budget: float, min_share: float = 0.0):
    ranking = rate(units(**shares), judge)
    judge.asked.clear()
    lines: list[str] = []
    return largest_set(ranking, judge, budget, min_share, lines.append), ranking, lines


EQUAL = dict.fromkeys("abcdefgh", 0.125)
COSTS = {name: 0.01 * 2**n for n, name in enumerate("abcdefgh")}


def test_units_are_ranked_by_what_they_cost_for_their_share():
    judge = Costs({"a": 0.4, "b": 0.3, "c": 0.1})
    ranking = rate(units(a=0.8, b=0.1, c=0.1), judge)
    assert [rated.unit.name for rated in ranking] == ["a", "c", "b"]
    assert judge.asked == [("a",), ("b",), ("c",)]


def test_everything_is_taken_where_that_fits_and_nothing_else_is_asked():
    judge = Costs(COSTS)
    found, ranking, lines = found_in(judge, EQUAL, 10.0)
    assert found.layers == layers_of(ranking)
    assert found.left_out == ()
    assert found.share == pytest.approx(1.0)
    assert len(judge.asked) == 1
    assert lines == ["8 of 8 units: +2.55 points lost"]


@pytest.mark.parametrize("budget", [0.01, 0.04, 0.2, 0.65, 1.3, 2.5])
def test_no_unit_could_be_added_to_what_is_found(budget):
    judge = Costs(COSTS)
    found, _, _ = found_in(judge, EQUAL, budget)
    cost = sum(COSTS[name] for name in found.layers)
    assert found.judgement.drop_points == pytest.approx(cost)
    assert cost <= budget + 1e-9
    assert all(cost + COSTS[rated.unit.name] > budget for rated in found.left_out)
    assert {r.unit.name for r in (*found.chosen, *found.left_out)} == set(EQUAL)


def test_a_unit_that_breaks_the_budget_is_passed_over_and_later_ones_still_tried():
    """b alone looks cheap but ruins everything it is in."""
    together = {frozenset("ab"): 5.0, frozenset("abcd"): 5.0, frozenset("abc"): 5.0}
    judge = Costs({"a": 0.1, "b": 0.11, "c": 0.12, "d": 0.13}, together)
    found, _, _ = found_in(judge, dict.fromkeys("abcd", 0.25), 0.5)
    assert sorted(found.layers) == ["a", "c", "d"]
    assert [rated.unit.name for rated in found.left_out] == ["b"]
    assert found.judgement.drop_points == pytest.approx(0.35)


def test_no_unit_that_fits_is_a_failure_that_names_the_costliest():
    told = (
        r"within 0\.005 points of J&F on the search's videos no layer can be quantised; "
        r"the layers that break it: "
        r"h \(alone: mask IoU 0\.9744, \+1\.28 points lost\), g .*; no bundle was written"
    )
    with pytest.raises(AccuracyGateError, match=told) as failed:
        found_in(Costs(COSTS), EQUAL, 0.005)
    assert failed.value.exit_code == 1


def test_less_than_the_smallest_share_is_a_failure():
    told = (
        r"within 0\.2 points of J&F on the search's videos layers with 50\.0% of the linear FLOPs "
        r"can be quantised, "
        r"--min-share asks for 90\.0%; the layers that break it: h "
    )
    with pytest.raises(AccuracyGateError, match=told):
        found_in(Costs(COSTS), EQUAL, 0.2, min_share=0.9)
    found, _, _ = found_in(Costs(COSTS), EQUAL, 0.2, min_share=0.5)
    assert found.share == pytest.approx(0.5)


def test_all_of_many_small_shares_are_all():
    shares = {f"u{n}": 0.1 for n in range(10)}  # their sum is 0.9999999999999999
    found, _, _ = found_in(Costs(dict.fromkeys(shares, 0.0)), shares, 1.0, min_share=1.0)
    assert found.left_out == ()
