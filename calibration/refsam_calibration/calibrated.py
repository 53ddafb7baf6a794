"""What a calibration found, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refsam_calibration.gate.judge import Judgement
from refsam_calibration.gate.search import Found, RatedUnit
from refsam_calibration.ranges.ranges import Ranges


@dataclass(frozen=True)
class Calibrated:
    """What a run found; None for what lies after the stage that it stopped at.

    Attributes:
        bundle_id: of the bundle that was calibrated.
        is_random: its weights are random, so that J&F means nothing.
        ranges: of the inputs of all layers that were asked for.
        ranges_path: the file they are in.
        ranking: every unit alone, what costs least for its share of the work first.
        found: the largest set within the budget.
        verified: what that set costs on the verification videos.
        fp16_range: what the fp16 nodes around the quantised layers hold (`half_range`).
        output_id: id of the quantised bundle.
    """

    bundle_id: str
    is_random: bool
    ranges: Ranges
    ranges_path: Path
    ranking: tuple[RatedUnit, ...] | None = None
    found: Found | None = None
    verified: Judgement | None = None
    fp16_range: dict[str, Any] | None = None
    output_id: str | None = None
