"""What `refsam-calibrate` was asked for, checked as far as options alone tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from refsam_calibration.quantise.layers import DEFAULT_KINDS, Unit
from refsam_calibration.quantise.schemes import Scheme
from refsam_calibration.ranges.clipping import Method
from refsam_calibration.ranges.ranges import Alpha, RangeOptions
from refsam_trt.errors import UsageError
from refsam_trt.files.target import refuse_folder

Stage = Literal["ranges", "sensitivity", "search", "bundle"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class CalibrateRequest:
    """What to quantise and what may be lost; None means the default.

    Attributes:
        bundle: folder of the bundle.
        clips: file of clips.
        output: folder of the new bundle; needed unless work stops before it is written.
        work: folder of what is kept between runs, ranges and journals; by default beside the
            output, with `-work` added to its name.
        layers: kinds, units or layers, as `choose_units` takes them.
        scheme, method, percentile, alpha: see `RangeOptions`; with `ranges`, as in that file.
        ranges: file of ranges to use instead of measuring.
        source: folder of the PyTorch weights; by default those inside the bundle.
        seed: of what is drawn from the clips; by default that in the file.
        max_drop_points: J&F that may be lost on the verification videos, in points of 0.01.
        margin_points: by how much less the search may lose, as it sees other videos; by default a
            fifth of what may be lost.
        min_share: of the FLOPs of the encoder's linear layers, 0 to 1, that must be quantised.
        stop_after: the last stage to do.

    Raises:
        UsageError: options that cannot be met, alone or together.
    """

    bundle: Path
    clips: Path
    output: Path | None = None
    work: Path | None = None
    layers: tuple[str, ...] = DEFAULT_KINDS
    scheme: Scheme | None = None
    method: Method | None = None
    percentile: float | None = None
    alpha: Alpha | None = None
    ranges: Path | None = None
    source: Path | None = None
    seed: int | None = None
    max_drop_points: float = 0.5
    margin_points: float | None = None
    min_share: float = 0.0
    stop_after: Stage = "bundle"

    def __post_init__(self) -> None:
        if self.output is None and self.stop_after == "bundle":
            raise UsageError("--output is needed, unless --stop-after names an earlier stage")
        if self.output is None and self.work is None:
            raise UsageError("--work is needed without --output: ranges and results are kept there")
        for option, points in (
            ("--max-jf-drop-points", self.max_drop_points),
            ("--margin-points", self.margin_points),
        ):
            if points is not None and not (math.isfinite(points) and points >= 0.0):
                raise UsageError(f"{option} {points}: expected a number of points, 0 or more")
        if self.output is not None and self.work is not None:
            _check_apart(self.output, self.work)
        if self.percentile is not None and self.method != "percentile":
            raise UsageError("--percentile is of --method percentile; give both or none")
        if not 0.0 <= self.min_share <= 1.0:
            raise UsageError(f"--min-share {self.min_share}: expected 0 to 1")
        if self.margin_points is not None and self.margin_points > self.max_drop_points:
            raise UsageError(
                f"--margin-points {self.margin_points:g} is more than --max-jf-drop-points "
                f"{self.max_drop_points:g}, which leaves the search nothing to lose; give less"
            )

    @property
    def search_points(self) -> float:
        """J&F that the search may lose, in points."""
        margin = self.margin_points
        return self.max_drop_points - (self.max_drop_points / 5 if margin is None else margin)

    @property
    def work_folder(self) -> Path:
        """Where ranges and journals are kept."""
        if self.work is not None:
            return self.work
        assert self.output is not None
        return self.output.with_name(f"{self.output.name}-work")

    def check_output(self) -> None:
        """Refuse, before anything is measured, what could not be written afterwards.

        Raises:
            OutputError: the output exists, or its folder does not.
        """
        if self.output is not None and self.stop_after == "bundle":
            refuse_folder(self.output)

    def options(self, units: Sequence[Unit]) -> RangeOptions:
        """Return how to measure, defaults filled in."""
        layers = tuple(name for unit in units for name in unit.layers)
        return RangeOptions(**{"scheme": "int8", "layers": layers, **self._stated_options()})

    def check_ranges(self, options: RangeOptions, units: Sequence[Unit]) -> None:
        """Refuse ranges, given as a file, that were measured otherwise than asked for.

        Raises:
            UsageError: an option that differs, or a layer that the file lacks.
        """
        for name, value in self._stated_options().items():
            measured = getattr(options, name)
            if value != measured:
                raise UsageError(
                    f"{self.ranges}: measured with {name} {measured}, but --{name} {value} is "
                    f"asked for; leave --{name} out, or leave --ranges out to measure anew"
                )
        missing = [x for unit in units for x in unit.layers if x not in options.layers]
        if missing:
            raise UsageError(
                f"{self.ranges}: has no range for {missing[0]} ({len(missing)} such layers); name "
                "fewer with --layers, or leave --ranges out to measure anew"
            )

    def _stated_options(self) -> dict[str, Any]:
        options = ("scheme", "method", "percentile", "alpha")
        return {name: value for name in options if (value := getattr(self, name)) is not None}


def _check_apart(output: Path, work: Path) -> None:
    if work.resolve().is_relative_to(output.resolve()):
        raise UsageError(
            f"--work {work} is the output or lies in it, which is written whole at the end; give "
            "another folder"
        )
