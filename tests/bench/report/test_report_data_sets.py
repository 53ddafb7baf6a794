"""Data sets of a report that lie on disk: scored as the accuracy code scores result folders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import exported
from mask_files import write_mask

import refsam_trt
from refsam_bench.accuracy.mask_png import read_label_map
from refsam_bench.accuracy.metrics import region_similarity
from refsam_bench.accuracy.protocols import score_results
from refsam_bench.commands.accuracy import accuracy
from refsam_bench.datasets.ref_davis import RefDavis
from refsam_bench.datasets.ref_youtube_vos import RefYoutubeVos
from refsam_bench.datasets.synthetic import Synthetic, SyntheticRequest
from refsam_bench.synthetic import generate, write_ref_davis
from refsam_bench.trackers.reference import EngineTracker
from refsam_trt.errors import DatasetError
from refsam_trt.run.datasets import YOUTUBE_THRESHOLD

NUM_FRAMES = 3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory, "tiny")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of the tuning seeds in Ref-DAVIS17 layout."""
    folder = tmp_path_factory.mktemp("data") / "set"
    options: dict[str, Any] = {"num_frames": NUM_FRAMES, "size_hw": (64, 96)}
    write_ref_davis(folder, seed=890_000, slice="attribute", num_videos=2, **options)
    return folder


def nothing() -> None:
    """Count no step."""


class Scripted:
    """A tracker whose logits depend on nothing but the frame, its number and the expression's."""

    def logits(self, frames, texts):
        rng = np.random.default_rng(3)
        for frame in frames:
            bright = frame.mean(axis=2).astype(np.float32) / 128 - 1
            yield [bright * rng.choice((-1, 1)) + 0.05 for _ in texts]


class TestRefDavis:
    def test_figures_are_those_of_the_accuracy_command(self, bundle: Path, root: Path, capsys):
        arguments = ["--bundle", str(bundle), "--dataset", "ref-davis", "--root", str(root)]
        accuracy.main([*arguments, "--json"], standalone_mode=False)
        expected = json.loads(capsys.readouterr().out)
        with refsam_trt.load(bundle) as engine:
            outcome = RefDavis(root).run(EngineTracker(engine), nothing)
        found = outcome.accuracy
        assert {key: expected[key] for key in found if key != "slices"} == {
            key: value for key, value in found.items() if key != "slices"
        }
        assert found["slices"]["annotator 3"]["j"] == expected["annotators"][3]["j"]

    def test_ious_and_views_belong_to_the_expression(self, root: Path):
        dataset = RefDavis(root)
        outcome = dataset.run(Scripted(), nothing)
        texts = json.loads((root / "meta_expressions/valid/meta_expressions.json").read_text())
        assert len(outcome.answers) == sum(len(v["expressions"]) for v in texts["videos"].values())
        for case, answer in outcome.answers.items():
            said = texts["videos"][case.sequence]["expressions"][case.expression_id]
            assert case.text == said["exp"]
            for index in range(NUM_FRAMES):
                view = dataset.view(case, index)
                path = root / "valid/Annotations" / case.sequence / f"{case.frames[index]}.png"
                np.testing.assert_array_equal(
                    view.mask, read_label_map(path) == int(said["obj_id"])
                )
                iou = region_similarity(answer.masks[index], view.mask, view.void)
                assert answer.ious[index] == iou

    def test_steps_are_frames(self, root: Path):
        dataset, ticks = RefDavis(root), []
        dataset.run(Scripted(), lambda: ticks.append(1))
        assert len(ticks) == dataset.num_steps == 2 * NUM_FRAMES


class TestRefYoutubeVos:
    def test_figures_are_those_of_folders_of_masks(self, root: Path, tmp_path: Path):
        """The same masks and annotations as files, one folder per expression."""
        dataset = RefYoutubeVos(root, "valid")
        outcome = dataset.run(Scripted(), nothing)
        for case, answer in outcome.answers.items():
            for index, frame in enumerate(case.frames):
                name = f"{case.sequence}/{case.expression_id}/{frame}.png"
                write_mask(tmp_path / "results" / name, answer.masks[index])
                write_mask(tmp_path / "true" / name, dataset.view(case, index).mask)
        expected = score_results(tmp_path / "results", tmp_path / "true", "per-expression")
        expected_json = expected.to_json()
        assert outcome.accuracy["j_and_f"] == pytest.approx(expected.j_and_f, abs=1e-12)
        for name, row in outcome.accuracy["sequences"].items():
            assert row["objects"] == expected_json["sequences"][name]["objects"]

    def test_its_threshold_is_the_scripts(self, root: Path):
        class Level:
            def __init__(self, level: float) -> None:
                self.level = level

            def logits(self, frames, texts):
                for frame in frames:
                    yield [np.full(frame.shape[:2], self.level, np.float32) for _ in texts]

        for level, is_full in ((YOUTUBE_THRESHOLD / 2, False), (YOUTUBE_THRESHOLD * 2, True)):
            outcome = RefYoutubeVos(root, "valid").run(Level(level), nothing)
            answers = outcome.answers.values()
            assert {bool(a.masks[k].all()) for a in answers for k in range(3)} == {is_full}

    def test_without_annotations_the_way_out_is_named(self, root: Path, tmp_path: Path):
        (tmp_path / "meta_expressions").symlink_to(root / "meta_expressions")
        with pytest.raises(DatasetError, match=r"valid/Annotations: no such folder.*--split train"):
            RefYoutubeVos(tmp_path, "valid")

    @pytest.mark.parametrize(
        ("spoil", "text"),
        [
            ("frame", r"\.jpg: no readable JPEG"),
            ("mask", r"\.png: no such file"),
            ("size", r"\.png: found 8x8, expected 96x64 as in the first image"),
            ("object", r"expression 0 names object 9, expected one of \[1"),
        ],
    )
    def test_bad_data_is_refused_by_name(self, spoil: str, text: str, tmp_path: Path):
        root = tmp_path / "set"
        write_ref_davis(
            root, seed=890_000, slice="attribute", num_videos=1, num_frames=2, size_hw=(64, 96)
        )
        (video,) = (root / "valid/JPEGImages").iterdir()
        mask = root / "valid/Annotations" / video.name / "00001.png"
        path = root / "meta_expressions/valid/meta_expressions.json"
        if spoil == "frame":
            (video / "00001.jpg").unlink()
        elif spoil == "mask":
            mask.unlink()
        elif spoil == "size":
            write_mask(mask, np.ones((8, 8), np.bool_))
        else:
            path.write_text(path.read_text().replace('"obj_id": "1"', '"obj_id": "9"'))
        with pytest.raises(DatasetError, match=text):
            RefYoutubeVos(root, "valid")


def test_synthetic_frames_are_painted_again_alike():
    class Nothing:
        def track(self, frames, texts, memory):
            for frame in frames:
                yield [np.zeros(frame.shape[:2], np.bool_)]

    dataset = Synthetic(SyntheticRequest(900_000, 2, ("motion", "track")))
    outcome = dataset.run(Nothing(), nothing)
    case = list(outcome.answers)[1]
    video = generate(900_000, 1, slice="track")
    view = dataset.view(case, 7)
    np.testing.assert_array_equal(view.frame, video.frames[7])
    np.testing.assert_array_equal(view.mask, video.mask(video.expressions[0].object_id)[7])
    assert not view.void.any()


def test_the_hash_tells_other_frames_and_other_words(root: Path):
    class Deaf:
        def track(self, frames, texts, memory):
            for frame in frames:
                yield [np.zeros(frame.shape[:2], np.bool_)]

    def of(seed: int, name: Any) -> str:
        return Synthetic(SyntheticRequest(seed, 1, (name,))).run(Deaf(), nothing).content_sha256

    assert of(900_000, "size") == of(900_000, "size")
    assert len({of(900_000, "size"), of(900_001, "size"), of(900_000, "position")}) == 3
