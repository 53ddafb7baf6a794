"""`refsam-bench accuracy`: what is run, what is scored, what is refused."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import shared_data
from exported import exported

import refsam_trt
from refsam_bench.commands.accuracy import accuracy
from refsam_bench.commands.options import RANDOM_NOTE
from refsam_bench.datasets.synthetic import SyntheticRequest, score_synthetic, to_json
from refsam_bench.synthetic import generate
from refsam_bench.trackers.reference import EngineTracker, ReferenceTracker
from refsam_export.source import load_source
from refsam_trt.bundle.open import open_bundle
from refsam_trt.errors import UsageError

SEED = 900_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory, "tiny")


class Oracle:
    """Knows the answer: the true masks of whatever object the expression names."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def track(self, frames, texts, memory):
        self.heard.append((texts[0], memory))
        for index in range(4):
            video = generate(SEED, index, slice=("attribute", "position")[index % 2])
            said = [e for e in video.expressions if e.text == texts[0]]
            if said and np.array_equal(next(iter(frames)), video.frames[0]):
                for mask in video.mask(said[0].object_id):
                    yield [mask]
                return
        raise AssertionError("not one of the videos")


def request(**changes) -> SyntheticRequest:
    return SyntheticRequest(SEED, 1, slices=("attribute",), **changes)


def test_the_right_answer_scores_one_and_a_siblings_nearly_nothing():
    oracle = Oracle()
    scores = score_synthetic(oracle, request(), lambda: None)
    assert scores.j_and_f == scores.j == scores.f == 1.0
    assert score_synthetic(oracle, request(probe="sibling"), lambda: None).j < 0.3
    score_synthetic(oracle, request(probe="forget"), lambda: None)
    (named, kept), (sibling, _), (_, forgotten) = oracle.heard
    assert named != sibling
    assert (kept, forgotten) == ("kept", "forgotten")


def test_slices_take_turns_and_are_scored_apart():
    class Everything:
        def track(self, frames, texts, memory):
            for frame in frames:
                yield [np.ones(frame.shape[:2], np.bool_)]

    wanted = SyntheticRequest(SEED, 4, slices=("attribute", "position"))
    ticks: list[int] = []
    scores = score_synthetic(Everything(), wanted, lambda: ticks.append(1))
    names = [sequence.name for sequence in scores.sequences]
    assert names == ["attribute-00000", "position-00001", "attribute-00002", "position-00003"]
    assert len(ticks) == 4
    slices = to_json(scores, wanted)["slices"]
    first, second, third, fourth = (sequence.j for sequence in scores.sequences)
    assert slices["attribute"]["j"] == pytest.approx((first + third) / 2)
    assert slices["position"]["j"] == pytest.approx((second + fourth) / 2)
    assert len({first, second, third, fourth}) == 4


@pytest.mark.parametrize("memory", ["kept", "forgotten"])
def test_bundle_and_reference_track_alike(bundle: Path, memory):
    video = generate(SEED, 0, slice="attribute", num_frames=4)
    texts = [expression.text for expression in video.expressions[:2]]
    reference = ReferenceTracker(load_source(open_bundle(bundle)))
    with refsam_trt.load(bundle) as engine:
        found = list(EngineTracker(engine).track(video.frames, texts, memory))
    expected = list(reference.track(video.frames, texts, memory))
    assert len(found) == len(expected) == 4
    differing = [
        (a != b).mean()
        for x, y in zip(found, expected, strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    assert max(differing) <= 1e-3


def test_memory_matters(bundle: Path):
    video = generate(SEED, 0, slice="attribute", num_frames=3)
    texts = [video.expressions[0].text]
    with refsam_trt.load(bundle) as engine:
        tracker = EngineTracker(engine)
        kept, forgotten = (
            list(tracker.track(video.frames, texts, m)) for m in ("kept", "forgotten")
        )
    np.testing.assert_array_equal(kept[0], forgotten[0])
    assert not np.array_equal(kept[2], forgotten[2])


def test_forgetting_concerns_every_expression_and_every_frame():
    """Masks that tell whether their expression has a track token."""

    class Video:
        def __init__(self) -> None:
            self.has_track = {}

        def add_expression(self, text: str) -> str:
            self.has_track[text] = False
            return text

        def step(self, frame):
            results = [SimpleNamespace(mask=has_track) for has_track in self.has_track.values()]
            self.has_track = dict.fromkeys(self.has_track, True)
            return results

        def run(self, frames):
            return map(self.step, frames)

        def reset_track(self, expression_id: str) -> None:
            self.has_track[expression_id] = False

    engine = SimpleNamespace(open_video=lambda: contextlib.nullcontext(Video()))
    for memory, later in (("kept", True), ("forgotten", False)):
        found = list(EngineTracker(engine).track([None] * 3, ["this", "that"], memory))
        assert found == [[False, False], [later, later], [later, later]]


def test_json_of_a_bundle_on_synthetic_videos(bundle: Path, capsys):
    arguments = ["--bundle", str(bundle), "--dataset", "synthetic", "--num-videos", "2", "--json"]
    accuracy.main(arguments, standalone_mode=False)
    printed = capsys.readouterr().out
    figures = json.loads(printed)
    assert printed.count("\n") == 1
    assert figures["random_weights"] is True
    assert set(figures["slices"]) == {"attribute", "size"}
    assert figures["j_and_f"] == pytest.approx((figures["j"] + figures["f"]) / 2)
    assert len(figures["sequences"]) == 2


def test_random_weights_are_named_in_the_table(bundle: Path, capsys):
    arguments = ["--bundle", str(bundle), "--dataset", "synthetic", "--num-videos", "1"]
    accuracy.main(arguments, standalone_mode=False)
    assert capsys.readouterr().out.startswith(RANDOM_NOTE)


def test_a_results_folder_is_scored(capsys):
    root = shared_data.path("ref-davis-mini")
    arguments = ["--results", str(root / "results" / "osvos"), "--json"]
    accuracy.main(
        [*arguments, "--annotations", str(root / "valid" / "Annotations")], standalone_mode=False
    )
    figures = json.loads(capsys.readouterr().out)
    assert figures["protocol"] == "davis-semi"
    assert figures["unscored_sequences"] == ["dogs-jump", "schoolgirls"]


def test_an_unknown_probe_is_refused():
    with pytest.raises(UsageError, match="no probe 'guess'; probes: none, sibling, forget"):
        SyntheticRequest(0, 1, probe="guess")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "give --results and --annotations, or --bundle and --dataset"),
        (["--results", "r"], "--results needs --annotations"),
        (["--results", "r", "--annotations", "a", "--bundle", "b"], "goes without --bundle"),
        (["--bundle", "b", "--dataset", "ref-davis"], "--root is needed for --dataset ref-davis"),
        (["--bundle", "b", "--dataset", "synthetic", "--root", "r"], "and for no other"),
        (
            ["--bundle", "b", "--dataset", "ref-davis", "--root", "r", "--probe", "sibling"],
            "work on --dataset synthetic only",
        ),
        (
            ["--bundle", "b", "--dataset", "synthetic", "--track-state-scope", "object"],
            "--track-state-scope object works on --dataset ref-davis only",
        ),
        (
            ["--bundle", "b", "--dataset", "synthetic", "--slices", "colour"],
            r"no slice \['colour'\]; slices: attribute",
        ),
    ],
)
def test_refusals(arguments: list[str], text: str):
    with pytest.raises(UsageError, match=text):
        accuracy.main(arguments, standalone_mode=False)
