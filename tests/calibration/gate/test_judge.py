"""What a judge says of quantised layers, against the same measured the long way."""

import os
from pathlib import Path

import numpy as np
import pytest
from calibration_model import BLOCKS, LAYERS, clips, options, own_model

from refsam_bench.datasets.ref_davis import RefDavis
from refsam_bench.datasets.ref_youtube_vos import RefYoutubeVos
from refsam_bench.datasets.synthetic import SyntheticRequest, score_synthetic
from refsam_bench.synthetic import generate, write_ref_davis
from refsam_bench.trackers.reference import ReferenceTracker
from refsam_calibration.clips import RefDavisSet, RefYoutubeVosSet, SyntheticSet
from refsam_calibration.gate.judge import NUM_WORST, LayerJudge, files_digest, open_set
from refsam_calibration.quantise.fake_quantisation import fake_quantised
from refsam_calibration.ranges.measure import measure_ranges
from refsam_calibration.ranges.videos import digest_of, open_videos
from refsam_trt.command.progress import Progress
from refsam_trt.errors import DatasetError

SET = SyntheticSet(seed=890_000, num_videos=2, slices=("attribute", "size"))


@pytest.fixture(scope="module")
def calibrated():
    loaded, videos = own_model(), open_videos(clips(), Path())
    ranges = measure_ranges(
        loaded, videos, options(), digest=digest_of(videos), progress=lambda: None
    )
    return loaded, ranges


def steps(label: str, total: int | None) -> Progress:
    return Progress(label, total, enabled=False)


def judge_of(calibrated, folder: Path, annotated=SET, steps=steps) -> LayerJudge:
    files = files_digest(annotated, Path())
    return LayerJudge(*calibrated, open_set(annotated, Path()), files, folder, "search", steps)


def masks_of(loaded, index: int, name: str) -> np.ndarray:
    video = generate(SET.seed, index, slice=name)
    tracked = ReferenceTracker(loaded).track(video.frames, [video.expressions[0].text])
    return np.stack([masks[0] for masks in tracked])


def test_figures_are_those_of_the_long_way(calibrated, tmp_path):
    loaded, ranges = calibrated
    found = judge_of(calibrated, tmp_path).judge(LAYERS, "all")
    videos = SyntheticRequest(SET.seed, SET.num_videos, SET.slices)
    ious = []
    expected = score_synthetic(ReferenceTracker(loaded), videos, lambda: None).j_and_f
    for index, name in enumerate(SET.slices):
        plain = masks_of(loaded, index, name)
        with fake_quantised(loaded.model, ranges.amax, "int8"):
            quantised = masks_of(loaded, index, name)
        union = (plain | quantised).sum((1, 2))
        ious += list((plain & quantised).sum((1, 2)) / union)
    assert found.reference_j_and_f == expected
    assert found.mask_iou == pytest.approx(np.mean(ious))
    assert 0 < found.mask_iou_loss < 0.2
    assert [frame.mask_iou for frame in found.worst] == pytest.approx(sorted(ious)[:NUM_WORST])
    with fake_quantised(loaded.model, ranges.amax, "int8"):
        quantised_j_and_f = score_synthetic(ReferenceTracker(loaded), videos, lambda: None).j_and_f
    assert found.j_and_f == quantised_j_and_f
    assert found.drop_points == pytest.approx(100 * (expected - quantised_j_and_f))
    assert found.num_layers == len(LAYERS)


def test_one_layer_costs_less_than_all(calibrated, tmp_path):
    judge = judge_of(calibrated, tmp_path)
    one = judge.judge([f"{BLOCKS}.5.mlp.lin2"], "one")
    assert 0 < one.mask_iou_loss < judge.judge(LAYERS, "all").mask_iou_loss


def test_what_was_judged_once_is_remembered_by_the_next_run(calibrated, tmp_path):
    labels: list[str] = []

    def noted(label: str, total: int | None) -> Progress:
        labels.append(label)
        assert total == 2
        return steps(label, total)

    first = judge_of(calibrated, tmp_path, steps=noted)
    assert not first.is_known(LAYERS)
    found = first.judge(LAYERS, "all")
    assert labels == ["search: float model", "all"]
    again = judge_of(calibrated, tmp_path, steps=noted)
    assert again.is_known(reversed(LAYERS))
    assert again.judge(reversed(LAYERS), "all") == found
    assert len(labels) == 2


def test_other_ranges_and_other_videos_have_files_of_their_own(calibrated, tmp_path):
    loaded, _ = calibrated
    judge_of(calibrated, tmp_path)
    judge_of(calibrated, tmp_path, SyntheticSet(seed=890_000, num_videos=3))
    videos = open_videos(clips(), Path())
    other = measure_ranges(
        own_model(),
        videos,
        options(alpha="none", method="minmax"),
        digest=digest_of(videos),
        progress=lambda: None,
    )
    judge_of((loaded, other), tmp_path)
    assert len(list(tmp_path.glob("search-*.jsonl"))) == 3


def test_a_model_that_differs_elsewhere_is_judged_anew(calibrated, tmp_path):
    judge_of(calibrated, tmp_path).judge(LAYERS, "all")
    assert judge_of(calibrated, tmp_path).is_known(LAYERS)
    other = own_model()
    other.model.text_encoder.shared.weight.data += 1.0
    assert not judge_of((other, calibrated[1]), tmp_path).is_known(LAYERS)


@pytest.mark.parametrize(
    "annotated", [RefDavisSet(root="set"), RefYoutubeVosSet(root="set", split="valid")]
)
def test_folders_are_judged_like_synthetic_videos(calibrated, tmp_path, annotated):
    write_ref_davis(
        tmp_path / "set", seed=7, slice="attribute", num_videos=1, num_frames=3, size_hw=(64, 96)
    )

    def opened():
        files = files_digest(annotated, tmp_path)
        work = tmp_path / "work"
        return LayerJudge(*calibrated, open_set(annotated, tmp_path), files, work, "search", steps)

    found = opened().judge(LAYERS, "all")
    assert 0 < found.mask_iou_loss < 0.2
    assert 0 < found.reference_j_and_f < 1
    assert {frame.frame for frame in found.worst} <= {"00000", "00001", "00002"}
    assert opened().is_known(LAYERS)
    mask = next((tmp_path / "set" / "valid" / "Annotations").rglob("00001.png"))
    os.utime(mask, ns=(0, 0))  # an edited file, of the same size even
    assert not opened().is_known(LAYERS)


def test_files_behind_links_count_and_dangling_ones_are_refused(tmp_path):
    annotated = RefYoutubeVosSet(root="set", split="valid")
    write_ref_davis(
        tmp_path / "set", seed=7, slice="attribute", num_videos=1, num_frames=3, size_hw=(64, 96)
    )
    images = tmp_path / "set" / "valid" / "JPEGImages"
    images.rename(tmp_path / "elsewhere")
    images.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(images)  # a loop
    before = files_digest(annotated, tmp_path)
    os.utime(next((tmp_path / "elsewhere").rglob("00001.jpg")), ns=(0, 0))
    assert files_digest(annotated, tmp_path) != before
    (tmp_path / "set" / "valid" / "lost").symlink_to(tmp_path / "nothing")
    with pytest.raises(DatasetError, match=r"lost: cannot be read \(No such file or directory\)"):
        files_digest(annotated, tmp_path)


def test_folders_are_opened_relative_to_the_file_of_clips(tmp_path):
    write_ref_davis(
        tmp_path / "set", seed=7, slice="attribute", num_videos=1, num_frames=3, size_hw=(64, 96)
    )
    assert isinstance(open_set(RefDavisSet(root="set"), tmp_path), RefDavis)
    youtube = open_set(RefYoutubeVosSet(root="set", split="valid"), tmp_path)
    assert isinstance(youtube, RefYoutubeVos)
