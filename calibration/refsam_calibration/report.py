"""What a calibration found, as JSON and as lines to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from refsam_calibration.gate.judge import Judgement
from refsam_calibration.gate.search import QuantisedSet, RatedUnit
from refsam_calibration.ranges.ranges import Ranges

RANDOM_NOTE = (
    "note: the weights are random, so J&F says nothing; mask IoU is with the masks of the float "
    "model"
)


@dataclass(frozen=True)
class Calibrated:
    """What a run found; None for what lies after the stage that it stopped at.

    Attributes:
        bundle_id: of the bundle that was calibrated.
        is_random: its weights are random, so that J&F means nothing.
        ranges: of the inputs of all layers that were asked for.
        ranges_path: the file they are in.
        ranking: every unit alone, what costs least for its share of the work first.
        largest: the set within the budget.
        verified: what that set costs on the verification videos.
        fp16_range: what the fp16 nodes around the quantised layers hold (`half_range`).
        output_id: id of the quantised bundle.
    """

    bundle_id: str
    is_random: bool
    ranges: Ranges
    ranges_path: Path
    ranking: tuple[RatedUnit, ...] | None = None
    largest: QuantisedSet | None = None
    verified: Judgement | None = None
    fp16_range: dict[str, Any] | None = None
    output_id: str | None = None


def to_json(done: Calibrated) -> dict[str, Any]:
    """Return everything as `json.dumps` takes it; what was not done is None."""
    return {
        "bundle_id": done.bundle_id,
        "output_id": done.output_id,
        "ranges_file": str(done.ranges_path),
        **record_json(done),
    }


def record_json(done: Calibrated) -> dict[str, Any]:
    """Return what goes into the manifest of the quantised bundle.

    Ranges stand without the exponents of smoothing, of which there is one per channel: the graphs
    have them, and the file of ranges.
    """
    largest = done.largest
    ranges = msgspec.to_builtins(done.ranges)
    for smoothing in ranges["smoothing"].values():
        del smoothing["exponents"]
    return {
        "random_weights": done.is_random,
        "ranges": ranges,
        "ranking": done.ranking
        and [
            {
                "unit": rated.unit.name,
                "layers": list(rated.unit.layers),
                "share": rated.unit.share,
                **_judgement_json(rated.judgement),
            }
            for rated in done.ranking
        ],
        "search": largest
        and {
            "share": largest.share,
            "chosen": [rated.unit.name for rated in largest.chosen],
            "left_out": [rated.unit.name for rated in largest.left_out],
            **_judgement_json(largest.judgement),
        },
        "verified": done.verified and _judgement_json(done.verified),
        "fp16_range": done.fp16_range,
    }


def lines(done: Calibrated) -> Iterator[str]:
    """Yield what to print: ranges, ranking, what was chosen and what it costs."""
    options = done.ranges.options
    yield (
        f"ranges: {len(done.ranges.layers)} layers, {done.ranges.num_frames} frames, "
        f"{options.scheme}, {options.method}, alpha {options.alpha}"
    )
    if done.ranking:
        yield f"{'unit':<20}{'share':>8}{'mask IoU':>10}{'points lost':>13}"
        for rated in done.ranking:
            cost = rated.judgement
            yield (
                f"{rated.unit.name:<20}{rated.unit.share:>8.2%}{cost.mask_iou:>10.5f}"
                f"{cost.drop_points:>+13.3f}"
            )
    if done.largest:
        names = ", ".join(rated.unit.name for rated in done.largest.left_out) or "none"
        yield f"quantised: {done.largest.share:.1%} of the linear FLOPs; left out: {names}"
        yield _cost_line("search", done.largest.judgement)
    if done.verified:
        yield _cost_line("verified", done.verified)
    if half := done.fp16_range:
        yield (
            f"fp16: the largest value is {half['max_abs']:.3g}, at most {half['bound']:g} allowed"
        )
    if done.is_random:
        yield RANDOM_NOTE


def _cost_line(label: str, cost: Judgement) -> str:
    worst = cost.worst[0]
    return (
        f"{label}: J&F {cost.reference_j_and_f:.4f} -> {cost.j_and_f:.4f} "
        f"({cost.drop_points:+.2f} points lost), mask IoU {cost.mask_iou:.5f}, worst frame "
        f"{worst.sequence} {worst.frame} with {worst.mask_iou:.3f}"
    )


def _judgement_json(judgement: Judgement) -> dict[str, Any]:
    figures: dict[str, Any] = msgspec.to_builtins(judgement)
    return {"drop_points": judgement.drop_points, **figures}
