"""The JSON of a report: what the accuracy and speed modules say, and what follows from it."""

import dataclasses
import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace

import fake_bundle
import numpy as np
import pytest
from exported import exported
from reported import NUM_VIDEOS, SEED, SLICES, Counted, reported, request

import refsam_bench.report.measure as measure
import refsam_trt
from refsam_bench.accuracy.metrics import region_similarity
from refsam_bench.datasets.outcome import Answer, Case, MaskTrack, Outcome
from refsam_bench.datasets.synthetic import SyntheticRequest, score_synthetic, to_json
from refsam_bench.report.measure import MeasuredReport, measure_report
from refsam_bench.report.provenance import commit
from refsam_bench.report.record import RANDOM_NOTE, choose_examples, choose_worst
from refsam_bench.report.sides import find_sides
from refsam_bench.synthetic import generate
from refsam_bench.trackers.reference import EngineTracker, ReferenceTracker
from refsam_export.source import load_source
from refsam_trt.bundle.open import open_bundle
from refsam_trt.errors import BackendError, OutputError, UsageError

VIDEOS = SyntheticRequest(SEED, NUM_VIDEOS, SLICES)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory, "tiny")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> MeasuredReport:
    return reported(tmp_path_factory)


@pytest.fixture(scope="module")
def reference(bundle: Path) -> ReferenceTracker:
    return ReferenceTracker(load_source(open_bundle(bundle)))


@pytest.fixture(scope="module")
def masks(bundle: Path, reference: ReferenceTracker) -> dict[str, list[np.ndarray]]:
    """Masks and truth of every video, made without any code of the report: bool [T, H, W]."""
    found: dict[str, list[np.ndarray]] = {"engine": [], "reference": [], "true": []}
    with refsam_trt.load(bundle) as engine:
        for index in range(NUM_VIDEOS):
            video = generate(SEED, index, slice=VIDEOS.slice_of(index))
            said = [video.expressions[0].text]
            for name, tracker in (("engine", EngineTracker(engine)), ("reference", reference)):
                frames = [answer[0] for answer in tracker.track(video.frames, said, "kept")]
                found[name].append(np.stack(frames))
            found["true"].append(video.mask(video.expressions[0].object_id))
    return found


class TestAccuracy:
    def test_of_the_engine_is_that_of_the_accuracy_command(
        self, report: MeasuredReport, bundle: Path
    ):
        with refsam_trt.load(bundle) as engine:
            scores = score_synthetic(EngineTracker(engine), VIDEOS, lambda: None)
        assert report.record["candidates"][0]["accuracy"] == to_json(scores, VIDEOS)

    def test_of_the_reference_is_that_of_the_accuracy_command(
        self, report: MeasuredReport, reference
    ):
        scores = score_synthetic(reference, VIDEOS, lambda: None)
        (entry,) = report.record["references"]
        assert entry["accuracy"] == to_json(scores, VIDEOS)

    def test_differences_are_engine_minus_reference(self, report: MeasuredReport):
        expected = report.record["references"][0]["accuracy"]
        for candidate in report.record["candidates"]:
            found, difference = candidate["accuracy"], candidate["difference"]
            assert candidate["reference"] == report.record["references"][0]["key"]
            for name in ("j_and_f", "j", "f"):
                assert difference[name] == found[name] - expected[name]
                for group, length in (("slices", 2), ("sequences", NUM_VIDEOS)):
                    assert len(difference[group]) == length
                    for key, row in difference[group].items():
                        assert row[name] == found[group][key][name] - expected[group][key][name]

    def test_an_equal_bundle_hardly_differs_and_another_one_does(self, report: MeasuredReport):
        equal, other = (candidate["difference"] for candidate in report.record["candidates"])
        assert abs(equal["j_and_f"]) <= 1e-3
        assert equal["mask_iou"]["min"] >= 0.99 > other["mask_iou"]["min"]

    def test_mask_iou_compares_the_masks_of_engine_and_reference(
        self, report: MeasuredReport, masks
    ):
        pairs = zip(masks["engine"], masks["reference"], strict=True)
        ious = np.array(
            [[region_similarity(*frame) for frame in zip(*p, strict=True)] for p in pairs]
        )
        found = report.record["candidates"][0]["difference"]["mask_iou"]
        assert found["mean"] == pytest.approx(ious.mean(), abs=1e-12)
        assert found["min"] == ious.min()
        video = int(found["lowest_at"]["sequence"].rpartition("-")[2])
        assert ious[video, int(found["lowest_at"]["frame"])] == ious.min()


class TestFrames:
    def test_worst_frames_have_the_lowest_iou_of_their_video(self, report: MeasuredReport, masks):
        entries = report.record["worst_frames"]
        assert len(entries) == 2
        lowest = [min(list(entry["iou"].values())[1:]) for entry in entries]
        assert lowest == sorted(lowest)
        for entry in entries:
            video = int(entry["sequence"].rpartition("-")[2])
            frame = int(entry["frame"])
            text = generate(SEED, video, slice=VIDEOS.slice_of(video)).expressions[0].text
            assert (entry["expression"], entry["slice"]) == (text, VIDEOS.slice_of(video))
            true = masks["true"][video][frame]
            for key, name in (("engine-0", "engine"), ("reference-0", "reference")):
                assert entry["iou"][key] == region_similarity(masks[name][video][frame], true)

    def test_worst_iou_of_a_candidate(self, report: MeasuredReport, masks):
        pairs = zip(masks["engine"], masks["true"], strict=True)
        lowest = min(region_similarity(*f) for pair in pairs for f in zip(*pair, strict=True))
        assert report.record["candidates"][0]["worst_iou"] == lowest

    def test_every_shown_frame_has_a_picture_of_every_side(self, report: MeasuredReport):
        keys = ["annotation", "reference-0", "engine-0", "engine-1"]
        shown = [*report.record["worst_frames"], *report.record["examples"]]
        assert len(shown) == 4
        assert set(report.pictures) == {f"{e['picture']}-{key}" for e in shown for key in keys}

    def test_choices_rank_cases_and_frames(self):
        ious = {"a": (0.9, 0.5), "b": (0.2, 0.3), "c": (0.7, 0.6), "d": (1.0, 1.0)}
        first, second = outcome(ious), outcome({**ious, "d": (1.0, 0.1)})
        worst = choose_worst({"first": first, "second": second}, 3)
        assert [(case.sequence, index) for case, index in worst] == [("d", 1), ("b", 0), ("a", 1)]
        assert [c.sequence for c, _ in choose_worst({"first": first}, 9)] == ["b", "a", "c", "d"]
        examples = choose_examples({"first": first, "second": second}, 2)
        assert [(case.sequence, index) for case, index in examples] == [("c", 1), ("d", 1)]
        assert [c.sequence for c, _ in choose_examples({"f": first}, 9)] == ["b", "c", "a", "d"]
        assert choose_worst({"first": first}, 0) == choose_examples({"first": first}, 0) == []


def outcome(ious: dict[str, tuple[float, ...]]) -> Outcome:
    answers = {
        Case(name, "0", "it", None, ("0", "1")): Answer(MaskTrack(), row)
        for name, row in ious.items()
    }
    return Outcome({}, answers, "")


class TestSpeed:
    def test_every_side_is_timed(self, report: MeasuredReport):
        for candidate in report.record["candidates"]:
            speed = candidate["speed"]
            assert speed["bundle_id"] == candidate["bundle_id"]
            assert speed["engine"]["num_samples"] == speed["reference"]["num_samples"] == 2
            assert math.isclose(speed["engine"]["fps"] * speed["engine"]["p50_ms"], 1000)
            assert speed["environment"]["num_threads"] == 1

    def test_what_the_speed_command_says_is_passed_on(self, bundle, tmp_path, monkeypatch):
        asked = []

        def measured(wanted, progress):
            asked.append(wanted)
            return SimpleNamespace(to_json=lambda: {"anything": 1})

        monkeypatch.setattr(measure, "measure_speed", measured)
        options = {"num_videos": 1, "num_speed_frames": 7, "num_worst": 0, "num_examples": 0}
        found = measure_report(request((bundle,), tmp_path / "r.html", **options), Counted())
        assert found.record["candidates"][0]["speed"] == {"anything": 1}
        (wanted,) = asked
        assert (wanted.num_frames, wanted.num_threads, wanted.with_reference) == (7, 1, True)


class TestRefusedVariants:
    @pytest.fixture
    def run(self, bundle: Path, tmp_path: Path, monkeypatch):
        """Return a function that measures two bundles of which the backend refuses some."""
        folders = (bundle, bundle.parent)
        _, (first,) = find_sides(request((bundle,), tmp_path / "r.html"))
        first = dataclasses.replace(first, reference=None, reference_absent="not wanted")
        pair = (first, dataclasses.replace(first, key="engine-1", label="bf16"))
        monkeypatch.setattr(measure, "find_sides", lambda wanted: ((), pair))
        run_engine = measure._run_engine

        def measured(refused: set[str], **options: object):
            def refuse(candidate, *others):
                if candidate.label in refused:
                    raise BackendError(f"no {candidate.label} here")
                return run_engine(candidate, *others)

            monkeypatch.setattr(measure, "_run_engine", refuse)
            small = {"num_videos": 1, "num_speed_frames": 0, "num_worst": 1, "num_examples": 0}
            wanted = request(folders, tmp_path / "r.html", **small, **options)
            return measure_report(wanted, Counted()).record

        return measured

    def test_are_listed_with_the_reason(self, run):
        record = run({"bf16"})
        (entry,) = record["not_run"]
        assert (entry["label"], entry["reason"]) == ("bf16", "no bf16 here")
        assert [c["key"] for c in record["candidates"]] == ["engine-0"]
        assert record["worst_frames"][0]["iou"].keys() == {"engine-0"}

    def test_are_errors_when_named_or_when_none_is_left(self, run):
        with pytest.raises(BackendError, match="no bf16 here"):
            run({"bf16"}, variants=("fp32-augmented-optimised",))
        with pytest.raises(BackendError, match="no bf16 here"):
            run({"bf16", "bundle-tiny-optimised-fp32 fp32"})


class TestOrigin:
    def test_everything_is_identified(self, report: MeasuredReport, bundle: Path):
        record = report.record
        first, second = record["bundles"]
        assert first["bundle_id"] == (bundle / "manifest.sha256").read_text().strip()
        assert first["bundle_id"] != second["bundle_id"] == record["candidates"][1]["bundle_id"]
        assert (first["preset"], first["random_init_seed"]) == ("tiny", 0)
        assert record["environment"]["numpy"] == np.__version__
        assert record["dataset"]["num_masks"] == NUM_VIDEOS * 16
        assert record["dataset"]["slices"] == list(SLICES)
        assert len(record["dataset"]["content_sha256"]) == 64
        assert json.loads(json.dumps(record, allow_nan=False)) == record

    def test_the_size_is_that_of_the_files_a_variant_needs(
        self, report: MeasuredReport, bundle: Path
    ):
        files = [p for p in bundle.rglob("*") if p.is_file()]
        kept_out = ("source.safetensors", "manifest.json", "manifest.sha256")
        needed = sum(p.stat().st_size for p in files if p.name not in kept_out)
        assert report.record["candidates"][0]["size_bytes"] == needed

    def test_random_weights_are_named(self, report: MeasuredReport):
        record = report.record
        sides = [*record["references"], *record["candidates"]]
        assert record["random_weights"] is True
        assert record["warning"] == RANDOM_NOTE
        assert all(side["random_weights"] is True for side in sides)

    def test_commit_of_a_checkout_and_of_nothing(self, tmp_path: Path):
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            assert str(commit()).removesuffix("-dirty") == done.stdout.strip()
        assert commit(str(tmp_path / "module.py")) is None
        assert commit(str(tmp_path / "site-packages" / "p" / "module.py")) is None

    def test_progress_is_told_of_every_step(self, bundle: Path, tmp_path: Path):
        counted = Counted()
        options = {"num_videos": 2, "num_speed_frames": 0, "num_worst": 1, "num_examples": 0}
        found = measure_report(request((bundle,), tmp_path / "r.html", **options), counted)
        label = found.record["candidates"][0]["label"]
        assert counted.totals == {"accuracy of PyTorch": [2, 2], f"accuracy of {label}": [2, 2]}
        assert found.record["candidates"][0]["speed"] is None


class TestSides:
    def test_bundles_of_the_same_weights_share_a_reference(self, report: MeasuredReport):
        assert len(report.record["references"]) == 1
        labels = [candidate["label"] for candidate in report.record["candidates"]]
        assert labels == ["bundle-tiny-optimised-fp32 fp32", "changed fp32"]

    def test_bundles_of_other_weights_do_not(self, tmp_path: Path):
        folders = []
        for seed in (0, 1):
            folder = fake_bundle.make_bundle(tmp_path / str(seed) / "same")
            manifest = fake_bundle.read_manifest(folder)
            manifest["weights"]["random_init_seed"] = seed
            fake_bundle.rewrite_manifest(folder, manifest)
            folders.append(folder)
        references, candidates = find_sides(request(tuple(folders), tmp_path / "r.html"))
        assert [r.key for r in references] == [c.reference for c in candidates]
        assert len({c.reference for c in candidates}) == 2
        assert len({side.label for side in candidates}) == 2

    def test_without_weights_the_reason_is_given(self, tmp_path: Path):
        folder = without_weights(tmp_path)
        references, (candidate,) = find_sides(request((folder,), tmp_path / "r.html"))
        assert references == ()
        assert candidate.reference is None
        assert "--source was not given: give --source FOLDER with refsam.safetensors" in str(
            candidate.reference_absent
        )
        wanted = request((folder,), tmp_path / "r.html", source=tmp_path)
        (reference,), (candidate,) = find_sides(wanted)
        assert reference.source == tmp_path
        assert candidate.reference_absent is None

    def test_random_answers_do_not_decide_what_is_shown_beside_trained_ones(self, tmp_path: Path):
        folders = (fake_bundle.make_bundle(tmp_path / "random"), without_weights(tmp_path))
        _, candidates = find_sides(request(folders, tmp_path / "r.html"))
        assert [c.label for c in measure.ranking(candidates)] == ["bare fp32"]
        assert [c.label for c in measure.ranking(candidates[:1])] == ["random fp32"]

    def test_a_variant_that_is_not_there(self, tmp_path: Path):
        folder = fake_bundle.make_bundle(tmp_path / "bundle")
        with pytest.raises(UsageError, match="the bundle has no variant 'int8'; it has:"):
            find_sides(request((folder,), tmp_path / "r.html", variants=("int8",)))


def without_weights(folder: Path) -> Path:
    bundle = fake_bundle.make_bundle(folder / "bare")
    manifest = fake_bundle.read_manifest(bundle)
    source = {"role": "checkpoint", "name": "refsam.safetensors", "size_bytes": 9}
    sources = [{**source, "sha256": "0123456789abcdef" * 4}]
    none_random = {"random_init_seed": None, "num_random_tensors": 0, "training": None}
    manifest["weights"] = {"sources": sources, **none_random}
    fake_bundle.rewrite_manifest(bundle, manifest)
    return bundle


class TestRequest:
    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"bundles": ()}, "name at least one bundle, and each once"),
            ({"bundles": (Path("a"), Path("a"))}, "name at least one bundle, and each once"),
            ({"dataset": "ref-davis"}, "--root is needed for ref-davis and ref-youtube-vos"),
            ({"root": Path("r")}, "--root is needed for ref-davis and ref-youtube-vos"),
            ({"output": Path("r.json")}, "r.json: expected a name that ends in .html"),
            ({"num_speed_frames": 1}, "1 frame has no percentiles: time 2 or more, or 0"),
        ],
    )
    def test_refusals(self, changes, text):
        whole = request((Path("a"),), Path("r.html"))
        with pytest.raises(UsageError, match=text):
            dataclasses.replace(whole, **changes)

    @pytest.mark.parametrize("name", ["r.html", "r.json"])
    def test_what_is_there_is_kept_unless_asked(self, name: str, tmp_path: Path):
        (tmp_path / name).write_text("kept")
        wanted = request((tmp_path / "absent",), tmp_path / "r.html")
        with pytest.raises(OutputError, match=f"{name}: exists already; .* [(]--overwrite[)]"):
            measure_report(wanted, Counted())
        dataclasses.replace(wanted, is_overwrite=True).check_outputs()

    def test_places_where_nothing_can_be_written(self, tmp_path: Path):
        (tmp_path / "r.html").mkdir()
        with pytest.raises(
            OutputError, match=r"r\.html: found a folder or a device, expected a file"
        ):
            request((Path("a"),), tmp_path / "r.html").check_outputs()
        with pytest.raises(OutputError, match="does not exist; create it first"):
            request((Path("a"),), tmp_path / "no" / "r.html").check_outputs()


def test_packed_masks_come_back():
    rng = np.random.default_rng(5)
    frames = [rng.random((13, 7)) < share for share in (0.0, 0.5, 1.0)]
    track = MaskTrack()
    for frame in frames:
        track.append(frame)
    assert len(track) == 3
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(track[index], frame)
