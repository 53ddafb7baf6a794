"""A family that decides at the end of a video fits the same session calls."""

from collections.abc import Iterator
from pathlib import Path

import fake_late_family
import numpy as np
import pytest
from runtime_twin import Twin, random_frames

import refsam_trt
from refsam_trt import StateError, UsageError
from refsam_trt.contract.registry import REGISTRY

TEXTS = ["dog", "the cat", "a white horse"]


@pytest.fixture
def late_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(REGISTRY, fake_late_family.FAMILY, fake_late_family.MODULES)
    return fake_late_family.make_late_bundle(tmp_path / "late")


@pytest.fixture
def late_engine(late_folder: Path) -> Iterator[refsam_trt.Engine]:
    with refsam_trt.load(late_folder, backend="fake") as engine:
        yield engine


def late_twin(folder: Path, frames: np.ndarray, text: str) -> list[np.ndarray]:
    """Return what the family should give for every frame, computed in one go."""
    twin = Twin(folder)
    steps = []
    for frame in frames:
        features = twin.run("backbone", {"image": twin.preprocess(frame)})
        steps.append(features | twin.run("proposer", features))
    query = twin.run("text", {"length": np.array([[len(text)]], np.float32)})
    scores = [twin.run("fusion", query | {"proposals": step["proposals"]}) for step in steps]
    best = int(np.mean([score["scores"][0] for score in scores], axis=0).argmax())
    choice = np.eye(3, dtype=np.float32)[best][None]
    masks = [twin.run("mask", {"features": s["features"], "choice": choice}) for s in steps]
    return [mask["low_res_logits"][0, 0] for mask in masks]


def test_results_come_at_the_end(late_folder: Path, late_engine: refsam_trt.Engine) -> None:
    frames = random_frames(4)
    with late_engine.open_video() as video:
        for text in TEXTS[:2]:
            video.add_expression(text)
        assert list(video.run(frames[:2])) == []
        for frame in frames[2:]:
            with video.encode(frame) as encoded:
                assert video.decode(encoded) == []
        assert video.num_frames == 4
        with pytest.raises(UsageError, match=r"later than their frame; use run\(frames\)"):
            video.step(frames[0])
        video.remove_expression(1)
        video.add_expression(TEXTS[2])
        rest = list(video.finish())
        with pytest.raises(UsageError, match="the video is finished"):
            video.step(frames[0])
    kept = {0: TEXTS[0], 2: TEXTS[2]}
    expected = {id_: late_twin(late_folder, frames, text) for id_, text in kept.items()}
    assert [results.frame_index for results in rest] == [0, 1, 2, 3]
    for results in rest:
        assert {result.expression_id: result.text for result in results} == kept
        assert results.label_map().shape == (24, 40)
        for result in results:
            assert result.frame_index == results.frame_index
            assert result.mask.shape == (24, 40)
            logits = expected[result.expression_id][result.frame_index]
            np.testing.assert_array_equal(result.low_res_logits, logits)


def test_track_gives_all_late_results(late_engine: refsam_trt.Engine) -> None:
    results = list(late_engine.track(random_frames(3), TEXTS))
    assert [(r.frame_index, r.text) for r in results] == [(i, t) for i in range(3) for t in TEXTS]


def test_a_video_begins_anew_after_reset(late_engine: refsam_trt.Engine) -> None:
    with late_engine.open_video() as video:
        video.add_expression("dog")
        list(video.run(random_frames(1)))
        assert len(list(video.finish())) == 1
        video.reset()
        assert list(video.finish()) == []


def test_a_family_may_refuse_to_be_interrupted(
    late_engine: refsam_trt.Engine, tmp_path: Path
) -> None:
    with late_engine.open_video() as video:
        list(video.run(random_frames(1)))
        with pytest.raises(StateError, match="decides at the end of a video and cannot be inter"):
            video.save_state(tmp_path / "state")
        assert not (tmp_path / "state").exists()


def test_a_graph_that_is_missing_is_named(
    late_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fake_late_family._GRAPHS, "refiner", ("", "", ""))
    expected = "no graph 'refiner', only backbone, fusion, mask, proposer, text; export it again"
    with pytest.raises(refsam_trt.BundleError, match=expected):
        refsam_trt.load(late_folder)
