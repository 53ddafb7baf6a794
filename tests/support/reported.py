"""A measured report of two bundles of random weights, made once per test run and shared."""

import pickle
from contextlib import contextmanager
from pathlib import Path

import pytest
from changed_bundles import changed_bundle
from exported import exported, once

import refsam_bench.speed.measure as speed
from refsam_bench.report.measure import MeasuredReport, measure_report
from refsam_bench.report.request import ReportRequest

SEED, NUM_VIDEOS, SLICES = 900_000, 3, ("attribute", "position")


class Counted:
    """Stands in for the progress bar and adds up what it was told."""

    def __init__(self) -> None:
        self.totals: dict[str, list[int]] = {}

    @contextmanager
    def __call__(self, label: str, total: int):
        counts = self.totals[label] = [0, total]

        class Steps:
            def update(self, steps: int = 1, note: str = "") -> None:
                counts[0] += steps

        yield Steps()


def other_bundle(factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of the same weights whose masks differ from the reference's."""
    return changed_bundle(
        exported(factory, "tiny"),
        factory.mktemp("changed") / "changed",
        "decoder_step",
        lambda name, _: "mlp.norm.bias" in name,
        lambda value: 2 * value,
    )


def reported(factory: pytest.TempPathFactory) -> MeasuredReport:
    """Return a report of `tiny` and of a copy with one number changed, timed over two frames."""

    def measure(target: Path) -> None:
        bundles = (exported(factory, "tiny"), other_bundle(factory))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(speed, "in_process", lambda run, side, request: 123.4)
            report = measure_report(request(bundles, target.with_suffix(".html")), Counted())
        target.write_bytes(pickle.dumps(report))

    return pickle.loads(once(factory, "report.pickle", measure).read_bytes())


def request(bundles: tuple[Path, ...], output: Path, **changes: object) -> ReportRequest:
    """Return a small request."""
    options: dict[str, object] = {
        "seed": SEED,
        "num_videos": NUM_VIDEOS,
        "slices": SLICES,
        "num_speed_frames": 2,
        "num_threads": 1,
        "num_worst": 2,
        "num_examples": 2,
        **changes,
    }
    return ReportRequest(bundles, output, **options)
