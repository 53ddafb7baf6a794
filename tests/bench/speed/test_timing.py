"""Timing by hand: summaries, the stopwatch on a clock of our own, a backend that only counts."""

from collections.abc import Iterator
from pathlib import Path

import fake_bundle
import numpy as np
import pytest
from runtime_twin import assert_same_results, random_frames

import refsam_bench.speed.timing as timing
import refsam_trt
from refsam_bench.speed.timing import Stopwatch, Summary, TimedBackend
from refsam_trt.backends.base import Backend
from refsam_trt.backends.ort import OrtCpuBackend
from refsam_trt.bundle.open import open_bundle
from refsam_trt.contract import refsam
from refsam_trt.session.engine import Engine
from refsam_trt.session.variants import choose_variant

EXPRESSIONS = ("the red disc", "a dog")


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


class TestSummary:
    def test_by_hand(self) -> None:
        """0 to 100 ms in steps of 1: a percentile is its own number."""
        milliseconds = np.random.default_rng(0).permutation(101)
        assert Summary.of([ms / 1e3 for ms in milliseconds]) == Summary(
            num_samples=101,
            mean_ms=pytest.approx(50),
            min_ms=0,
            p50_ms=pytest.approx(50),
            p90_ms=pytest.approx(90),
            p95_ms=pytest.approx(95),
            p99_ms=pytest.approx(99),
            max_ms=100,
        )

    def test_between_two_samples(self) -> None:
        found = Summary.of([0.010, 0.020])
        assert found.num_samples == 2
        assert found.mean_ms == found.p50_ms == pytest.approx(15)
        assert found.p90_ms == pytest.approx(19)
        assert found.p99_ms == pytest.approx(19.9)

    def test_one_sample_is_everything(self) -> None:
        found = Summary.of([0.0025])
        assert (found.min_ms, found.p50_ms, found.p99_ms, found.max_ms) == (2.5,) * 4


class TestStopwatch:
    def test_a_stage_sums_up_within_a_lap(self, clock: Clock) -> None:
        watch = Stopwatch()
        for seconds in ((1.0, 2.0), (4.0,)):
            for part in seconds:
                with watch.stage("a"):
                    clock.now += part
                clock.now += 50  # outside
            watch.lap()
        assert watch.seconds("a") == [3.0, 4.0]

    def test_stages_inside_each_other(self, clock: Clock) -> None:
        watch = Stopwatch()
        with watch.stage("outer"):
            clock.now += 1
            with watch.stage("inner"):
                clock.now += 2
        watch.lap()
        assert watch.seconds("outer") == [3.0]
        assert watch.seconds("inner") == [2.0]
        assert watch.stages == ("inner", "outer")

    def test_laps_without_a_stage_count_zero(self, clock: Clock) -> None:
        watch = Stopwatch()
        for names in (("a",), ("a", "b"), ()):
            for name in names:
                with watch.stage(name):
                    clock.now += 1
            watch.lap()
        assert watch.seconds("a") == [1.0, 1.0, 0.0]
        assert watch.seconds("b") == [0.0, 1.0, 0.0]
        assert watch.seconds("c") == [0.0, 0.0, 0.0]

    def test_discarded_laps_leave_no_trace(self, clock: Clock) -> None:
        watch = Stopwatch()
        with watch.stage("warm-up"):
            clock.now += 9
        watch.discard()
        watch.lap()
        assert watch.stages == ()

    def test_a_stage_that_fails_is_counted(self, clock: Clock) -> None:
        watch = Stopwatch()

        def fail() -> None:
            with watch.stage("a"):
                clock.now += 2
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        watch.lap()
        assert watch.seconds("a") == [2.0]


@pytest.fixture(params=["baseline", "optimised"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    split: refsam.Split = request.param
    return fake_bundle.make_bundle(tmp_path / "bundle", split=split)


@pytest.fixture
def watch() -> Stopwatch:
    return Stopwatch()


@pytest.fixture
def timed(folder: Path, watch: Stopwatch) -> Iterator[Engine]:
    bundle = open_bundle(folder)
    backend = TimedBackend(OrtCpuBackend(1), watch)
    with Engine(bundle, choose_variant(bundle.manifest, None), backend, "lazy") as engine:
        yield engine


class TestTimedBackend:
    def test_is_a_whole_backend(self, watch: Stopwatch) -> None:
        backend = TimedBackend(OrtCpuBackend(1), watch)
        names = [name for name in vars(Backend) if not name.startswith("_")]
        assert len(names) >= 9
        assert [name for name in names if not hasattr(backend, name)] == []

    def test_changes_no_result_and_no_transfer(self, folder: Path, timed: Engine) -> None:
        frames = random_frames(4)
        with refsam_trt.load(folder, num_threads=1) as plain:
            sessions = [engine.open_video() for engine in (plain, timed)]
            for session in sessions:
                for text in EXPRESSIONS:
                    session.add_expression(text)
            for frame in frames:
                expected, found = (session.step(frame) for session in sessions)
                assert_same_results(found, expected)
            for session in sessions:
                session.close()
            assert timed.transfers == plain.transfers
            assert timed.backend == plain.backend

    def test_counts_every_stage(
        self, timed: Engine, watch: Stopwatch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every call takes one tick of a clock that moves only when it is read."""

        class Ticking(Clock):
            def perf_counter(self) -> float:
                self.now += 1
                return self.now

        monkeypatch.setattr(timing, "time", Ticking())
        with timed.open_video() as video:
            for text in EXPRESSIONS:
                video.add_expression(text)
            watch.lap()
            for frame in random_frames(2):
                video.step(frame)
                watch.lap()
        assert watch.seconds("text_encoder") == [2.0, 0.0, 0.0]
        assert watch.seconds("image_encoder") == [0.0, 1.0, 1.0]
        assert watch.seconds("decoder_step") == [0.0, 1.0, 1.0]
        # Logits and scores; the track tokens stay on the device.
        assert watch.seconds("download")[1:] == [2.0, 2.0]
        assert all(count >= 1 for count in watch.seconds("upload"))
        names = {"upload", "text_encoder", "image_encoder", "decoder_step", "download"}
        assert set(watch.stages) == names
        counts = timed.transfers
        assert sum(watch.seconds("upload")) == counts.num_uploads
        assert sum(watch.seconds("download")) == counts.num_downloads
