"""The protocols on small clips: against a slow twin, and every edge by hand."""

import json
import math
import sys

import numpy as np
import pytest
from accuracy_twin import slow_clip_frames, slow_statistics, write_clip
from mask_files import write_mask

from refsam_bench.accuracy.protocols import score_clip, score_results
from refsam_bench.accuracy.scores import total_scores
from refsam_trt.errors import DatasetError, MissingExtraError, UsageError


def random_clip(seed, *, num_frames, num_objects, num_predictions, void):
    """Return (predicted, true) label maps [T, 12, 16]; true also holds a late, uncounted object."""
    rng = np.random.default_rng(seed)
    true = np.zeros((num_frames, 12, 16), np.uint8)
    ys, xs = np.mgrid[:12, :16]
    for frame in true:
        for k in range(1, num_objects + 2):
            if rng.random() < 0.8:
                frame[(ys - rng.uniform(0, 12)) ** 2 + (xs - rng.uniform(0, 16)) ** 2 < 14] = k
    true[0][true[0] > num_objects] = 0
    true[0, 0, 0] = num_objects
    guess = np.where(true > num_predictions, 0, true)
    noise = rng.integers(0, num_predictions + 1, true.shape)
    predicted = np.where(rng.random(true.shape) < 0.2, noise, guess).astype(np.uint8)
    if void:
        true[rng.random(true.shape) < 0.1] = 255
        true[0, 0, 0] = num_objects
    return predicted, true


def save(root, name, predicted, true):
    write_clip(root / "results" / name, predicted)
    write_clip(root / "annotations" / name, true)


def scored(root, protocol, **options):
    return score_results(root / "results", root / "annotations", protocol, **options)


@pytest.mark.parametrize("protocol", ["davis-semi", "davis-unsup"])
@pytest.mark.parametrize("void", [False, True])
@pytest.mark.parametrize(
    ("num_frames", "num_objects", "num_predictions"), [(5, 2, 2), (3, 1, 1), (7, 3, 2), (4, 3, 0)]
)
def test_protocols_equal_the_slow_twin(
    tmp_path, protocol, void, num_frames, num_objects, num_predictions
):
    predicted, true = random_clip(
        num_frames,
        num_frames=num_frames,
        num_objects=num_objects,
        num_predictions=num_predictions,
        void=void,
    )
    save(tmp_path, "clip", predicted, true)
    found = scored(tmp_path, protocol).sequences[0].objects
    expected = slow_clip_frames(predicted, true, protocol)
    assert len(found) == len(expected) == num_objects
    for part, (j_frames, f_frames) in zip(found, expected, strict=True):
        assert part.j_frames == pytest.approx(j_frames)
        assert part.f_frames == pytest.approx(f_frames)
        j, f = slow_statistics(j_frames), slow_statistics(f_frames)
        assert (part.j, part.j_recall, part.j_decay) == pytest.approx(j)
        assert (part.f, part.f_recall, part.f_decay) == pytest.approx(f)


def test_more_proposals_than_objects_equal_the_slow_twin(tmp_path):
    predicted, true = random_clip(8, num_frames=4, num_objects=2, num_predictions=2, void=True)
    predicted = np.array([0, 4, 2])[predicted].astype(np.uint8)  # proposals 1 and 3 are empty
    save(tmp_path, "clip", predicted, true)
    objects = scored(tmp_path, "davis-unsup").sequences[0].objects
    expected = slow_clip_frames(predicted, true, "davis-unsup")
    assert [o.j_frames for o in objects] == [pytest.approx(j) for j, _ in expected]


def square(y, x, label=1, size=4):
    """Return a label map [12, 16] with one square."""
    frame = np.zeros((12, 16), np.uint8)
    frame[y : y + size, x : x + size] = label
    return frame


def test_semi_leaves_out_first_and_last_frame_and_unsup_does_not(tmp_path):
    true = [square(2, 2)] * 4
    save(tmp_path, "clip", [square(7, 7), square(2, 2), square(2, 2), square(7, 7)], true)
    assert scored(tmp_path, "davis-semi").j == 1
    assert scored(tmp_path, "davis-unsup").j == 0.5
    (tmp_path / "results/clip/00000.png").unlink()
    (tmp_path / "results/clip/00003.png").unlink()
    part = scored(tmp_path, "davis-semi").sequences[0].objects[0]
    assert part.frames == ("00001", "00002")


def test_swapped_ids_are_forgiven_by_unsup_only(tmp_path):
    true = [square(1, 1) + square(1, 10, 2)] * 3
    predicted = [square(1, 1, 2) + square(1, 10, 1)] * 3
    save(tmp_path, "clip", predicted, true)
    assert scored(tmp_path, "davis-semi").j_and_f == 0
    scores = scored(tmp_path, "davis-unsup")
    assert scores.j_and_f == 1
    ids = [(o.name, o.object_id, o.prediction_id) for o in scores.sequences[0].objects]
    assert ids == [("clip_1", "2", "1"), ("clip_2", "1", "2")]


def test_unsup_matches_once_per_video_not_per_frame(tmp_path):
    true = [square(1, 1) + square(1, 10, 2)] * 3
    swapped = square(1, 1, 2) + square(1, 10, 1)
    save(tmp_path, "clip", [true[0], true[0], swapped], true)
    assert scored(tmp_path, "davis-unsup").j == pytest.approx(2 / 3)


def test_unsup_matches_on_j_and_f_together(tmp_path):
    true = np.zeros((24, 32), np.uint8)
    true[4:16, 4:16] = 1
    predicted = true * 2  # the outermost pixels: J 44/144, but all of the boundary
    predicted[5:15, 5:15] = 0
    predicted[6:14, 6:14] = 1  # the core: J 64/144, but 2 px off the boundary everywhere
    save(tmp_path, "clip", [predicted], [true])
    (found,) = scored(tmp_path, "davis-unsup").sequences[0].objects
    assert (found.prediction_id, found.j, found.f) == ("2", pytest.approx(44 / 144), 1)


def test_void_is_ignored_by_unsup_and_background_for_semi(tmp_path):
    true = square(2, 2)
    true[2:6, 6:10] = 255
    predicted = square(2, 2)
    predicted[2:6, 6:10] = 1
    save(tmp_path, "clip", [predicted] * 3, [true] * 3)
    assert scored(tmp_path, "davis-unsup").j_and_f == 1
    assert scored(tmp_path, "davis-semi").j == 0.5


def test_object_that_has_no_prediction_counts_as_empty(tmp_path):
    true = [square(1, 1) + square(1, 10, 2)] * 2 + [square(1, 1)] * 2
    save(tmp_path, "clip", [square(1, 1)] * 4, true)
    objects = scored(tmp_path, "davis-semi").sequences[0].objects
    assert [o.j_frames for o in objects] == [(1, 1), (0, 1)]  # empty against empty is 1
    assert [o.f_frames for o in objects] == [(1, 1), (0, 1)]


def test_object_that_appears_after_the_first_frame_is_background(tmp_path):
    true = [square(1, 1)] + [square(1, 1) + square(1, 10, 2)] * 3
    save(tmp_path, "clip", [square(1, 1)] * 4, true)
    objects = scored(tmp_path, "davis-unsup").sequences[0].objects
    assert [(o.object_id, o.j, o.f) for o in objects] == [("1", 1, 1)]


def test_id_that_the_first_frame_skips_is_an_empty_object(tmp_path):
    save(tmp_path, "clip", [square(1, 1, 3)] * 3, [square(1, 1, 3)] * 3)
    scores = scored(tmp_path, "davis-semi")
    assert [o.j for o in scores.sequences[0].objects] == [1, 1, 1]


def test_one_frame_and_one_pixel(tmp_path):
    save(tmp_path, "clip", [square(3, 3, size=1)], [square(3, 4, size=1)])
    scores = scored(tmp_path, "davis-unsup")
    # The two boundaries are 2x2 pixels, 1 px apart, and the tolerance is 1 px.
    assert (scores.j, scores.f, scores.j_decay, scores.f_decay) == (0, 1, 0, 0)


def test_more_than_255_frames(tmp_path):
    save(tmp_path, "clip", [square(3, 3)] * 300, [square(3, 3)] * 300)
    scores = scored(tmp_path, "davis-unsup")
    assert scores.j_and_f == 1
    assert math.isnan(scores.j_decay)
    text = json.dumps(scores.to_json(), allow_nan=False)
    assert json.loads(text)["sequences"]["clip"]["objects"]["clip_1"]["f_decay"] is None


def test_mean_is_over_objects_not_over_sequences_or_frames(tmp_path):
    two = [square(1, 1) + square(1, 10, 2)] * 5
    save(tmp_path, "a", two, two)
    save(tmp_path, "b", [square(7, 7)] * 3, [square(1, 1)] * 3)
    scores = scored(tmp_path, "davis-unsup")
    assert scores.j == pytest.approx(2 / 3)
    assert [(s.name, s.j) for s in scores.sequences] == [("a", 1), ("b", 0)]
    assert total_scores("davis-unsup", scores.sequences[1:]).j == 0
    found = scores.to_json()
    assert found["protocol"] == "davis-unsup"
    assert found["j"] == scores.j
    assert found["sequences"]["b"]["objects"]["b_1"] == {
        "object_id": "1",
        "prediction_id": "1",
        **{name: 0 for name in ("j_and_f", "j", "f", "j_recall", "f_recall")},
        **{name: 0 for name in ("j_decay", "f_decay")},
    }


def test_sequences_select_and_what_is_left_out_is_named(tmp_path):
    for name in ("a", "b", "c"):
        write_clip(tmp_path / "annotations" / name, [square(1, 1)] * 3)
    for name in ("a", "b"):
        write_clip(tmp_path / "results" / name, [square(1, 1)] * 3)
    assert scored(tmp_path, "davis-semi").unscored_sequences == ("c",)
    only = scored(tmp_path, "davis-semi", sequences=["b"])
    assert [s.name for s in only.sequences] == ["b"]
    assert only.to_json()["unscored_sequences"] == ["a", "c"]


def save_masks(root, masks):
    for name, mask in masks.items():
        write_mask(root / f"{name}.png", mask.astype(bool))


def test_per_expression_scores_every_expression_alone(tmp_path):
    right, wrong, nothing = square(1, 1), square(7, 7), np.zeros((12, 16))
    true = {"v/0/00000": right, "v/0/00001": right, "v/1/00000": nothing, "w/7/00000": right}
    found = {"v/0/00000": right, "v/0/00001": wrong, "v/1/00000": nothing, "w/7/00000": wrong}
    save_masks(tmp_path / "annotations", true)
    save_masks(tmp_path / "results", found)
    scores = scored(tmp_path, "per-expression")
    objects = {o.name: o for s in scores.sequences for o in s.objects}
    assert {name: o.j_frames for name, o in objects.items()} == {
        "v_0": (1, 0),
        "v_1": (1,),
        "w_7": (0,),
    }
    assert (objects["w_7"].object_id, objects["w_7"].prediction_id) == ("7", "7")
    assert scores.j == pytest.approx((0.5 + 1 + 0) / 3)
    assert [(s.name, s.j) for s in scores.sequences] == [("v", 0.75), ("w", 0)]


def test_a_clip_that_was_never_written_scores_like_a_folder(tmp_path):
    predicted, true = random_clip(3, num_frames=4, num_objects=2, num_predictions=2, void=True)
    save(tmp_path, "clip", predicted, true)
    names = [f"{index:05d}" for index in range(4)]
    clip = zip(names, predicted, true, strict=True)
    objects = score_clip("clip", clip, "davis-unsup", num_objects=2, num_predictions=2)
    assert tuple(objects) == scored(tmp_path, "davis-unsup").sequences[0].objects


def test_requests_that_cannot_be_met(tmp_path):
    save(tmp_path, "clip", [square(1, 1)] * 3, [square(1, 1)] * 3)
    with pytest.raises(UsageError, match="unknown protocol 'davis'; choose one of davis-semi, "):
        scored(tmp_path, "davis")
    with pytest.raises(UsageError, match=r"expected at least one and each once, found \[\]"):
        scored(tmp_path, "davis-semi", sequences=[])
    with pytest.raises(UsageError, match=r"each once, found \['clip', 'clip'\]"):
        scored(tmp_path, "davis-semi", sequences=["clip", "clip"])
    with pytest.raises(UsageError, match="clip: no frame to score"):
        score_clip("clip", [], "davis-semi", num_objects=1, num_predictions=1)
    high = [("0", square(1, 1, 3), square(1, 1))]
    with pytest.raises(UsageError, match="clip, frame 0: predicted id 3 is above 2"):
        score_clip("clip", high, "davis-semi", num_objects=1, num_predictions=2)


def test_unsup_without_scipy_says_what_to_install(tmp_path, monkeypatch):
    save(tmp_path, "clip", [square(1, 1)] * 3, [square(1, 1)] * 3)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingExtraError, match=r'pip install "refsam-trt\[bench\]"'):
        scored(tmp_path, "davis-unsup")
    assert scored(tmp_path, "davis-semi").j == 1


def test_twenty_proposals_are_scored_and_twenty_one_refused(tmp_path):
    save(tmp_path, "clip", [square(1, 1, 20)] * 2, [square(1, 1)] * 2)
    assert scored(tmp_path, "davis-unsup").j == 1
    write_clip(tmp_path / "results" / "clip", [square(1, 1, 1), square(1, 1, 21)])
    text = r"clip/00001.png: found object id 21, expected at most 20 proposals per sequence"
    with pytest.raises(DatasetError, match=text):
        scored(tmp_path, "davis-unsup")
