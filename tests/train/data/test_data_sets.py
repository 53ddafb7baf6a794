"""Data sets on disk: read right, and refused by file name before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shared_data
from PIL import Image

from refsam_bench.synthetic import generate, write_ref_davis
from refsam_train.data.ref_coco import ImageClips, outline_mask, read_image_samples
from refsam_train.data.video_sets import VideoClips, read_video_samples
from refsam_trt.errors import DatasetError


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    write_ref_davis(
        tmp_path / "set", seed=7, slice="attribute", num_videos=2, num_frames=5, size_hw=(64, 96)
    )
    return tmp_path / "set"


def _first_video(root: Path) -> str:
    return sorted(path.name for path in (root / "valid" / "JPEGImages").iterdir())[0]


def _expressions(root: Path) -> Path:
    return root / "meta_expressions" / "valid" / "meta_expressions.json"


def test_video_clips_show_the_object_of_their_expression(videos: Path) -> None:
    samples = read_video_samples(videos, "valid")
    video = generate(7, 0, slice="attribute", num_frames=5, size_hw=(64, 96))
    assert len({sample.images for sample in samples}) == 2
    source = VideoClips(samples, None)
    clips = [source.clip((0, index), 3) for index in range(12)]
    for clip in clips:
        assert clip.frames.shape == (3, 64, 96, 3)
        assert clip.masks.shape == (1, 3, 64, 96)
        assert clip.masks.any()
    truth = [video.mask(e.object_id) for e in video.expressions]
    mine = [c for c in clips if _first_video(videos) in c.name]
    assert mine
    for clip in mine:
        assert any(
            np.array_equal(clip.masks[0, t], m[f])
            for t in range(3)
            for m in truth
            for f in range(5)
        )
    again = source.clip((0, 3), 3)
    assert np.array_equal(again.frames, clips[3].frames)


def test_longer_clips_draw_further_frames(videos: Path) -> None:
    assert len(VideoClips(read_video_samples(videos, "valid"), "video").clip((1,), 5).frames) == 5


def test_real_clips_are_read() -> None:
    root = shared_data.path("ref-davis-mini")
    samples = read_video_samples(root, "valid")
    assert len(samples) == 60
    clip = VideoClips(samples, "video").clip((0,), 3)
    assert clip.masks.any()


def test_a_missing_frame_is_refused_by_name(videos: Path) -> None:
    frame = videos / "valid" / "JPEGImages" / _first_video(videos) / "00002.jpg"
    frame.unlink()
    with pytest.raises(DatasetError, match=r"00002\.jpg: no readable frame") as caught:
        read_video_samples(videos, "valid")
    assert str(frame) in str(caught.value)


def test_a_mask_of_another_size_is_refused_by_name(videos: Path) -> None:
    mask = videos / "valid" / "Annotations" / _first_video(videos) / "00001.png"
    Image.open(mask).resize((48, 32)).save(mask)
    with pytest.raises(DatasetError, match=r"00001\.png: found 32x48 pixels .* has 64x96"):
        read_video_samples(videos, "valid")


def test_an_object_id_that_no_mask_has_is_refused(videos: Path) -> None:
    path = _expressions(videos)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["videos"][_first_video(videos)]["expressions"]["2"]["obj_id"] = "9"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"expression 2: obj_id \[9\], but the masks in .* have"):
        read_video_samples(videos, "valid")


def test_expressions_for_no_video_are_refused(videos: Path) -> None:
    path = _expressions(videos)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["videos"]["nowhere"] = next(iter(content["videos"].values()))
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"nowhere: no such folder, but .* has expressions"):
        read_video_samples(videos, "valid")
    path.write_text('{"videos": {}}', encoding="utf-8")
    with pytest.raises(DatasetError, match="names no video"):
        read_video_samples(videos, "valid")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "train2014").mkdir()
    grey = Image.fromarray(np.full((40, 60, 3), 128, np.uint8))
    grey.save(tmp_path / "train2014" / "a.jpg")
    for name in ("refcoco", "refcoco+", "refcocog"):
        _write_set(tmp_path, name, {})
    return tmp_path


def _write_set(root: Path, name: str, changes: dict[str, Any]) -> None:
    image = {"id": 1, "file_name": "a.jpg", "height": 40, "width": 60, "caption": f"left {name}"}
    outline = changes.pop("segmentation", [[10.0, 10.0, 29.0, 10.0, 29.0, 19.0, 10.0, 19.0]])
    content = {
        "images": [{**image, **changes}],
        "annotations": [{"image_id": 1, "segmentation": outline}],
    }
    (root / f"instances_{name}_train.json").write_text(json.dumps(content), encoding="utf-8")


def test_images_become_pseudo_clips(images: Path) -> None:
    samples = read_image_samples(images)
    assert [sample.text for sample in samples] == ["left refcoco", "left refcoco+", "left refcocog"]
    clip = ImageClips(samples, None).clip((0,), 3)
    assert clip.frames.shape == (3, 40, 60, 3)
    assert clip.masks.sum(axis=(0, 2, 3)).tolist() == [200, 200, 200]
    assert clip.masks[0, 0, 10:20, 10:30].all()
    changed = ImageClips(samples, "image").clip((3,), 3)
    assert not np.array_equal(changed.frames[0], changed.frames[1])


def test_run_lengths_go_down_the_columns() -> None:
    mask = outline_mask({"size": [2, 3], "counts": [1, 2, 3]}, (2, 3))
    assert mask.tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"file_name": "b.jpg"},
            r"b\.jpg: no such file, but .*refcoco\+_train.*image 1",
        ),
        ({"caption": " "}, "image 1: has no caption"),
        ({"segmentation": [[1.0, 2.0]]}, "no usable 'segmentation'; expected polygons"),
        ({"segmentation": {"size": [2, 2], "counts": [4]}}, r"run lengths of \(2, 2\), expected"),
        (
            {"segmentation": {"size": [2, 2], "counts": [5]}},
            r"image 1: RLE counts: expected whole numbers from 0 to 4; correct the entry",
        ),
        ({"height": "tall"}, "an entry of 'images' lacks"),
    ],
)
def test_faulty_entries_are_refused(images: Path, changes: dict[str, Any], message: str) -> None:
    _write_set(images, "refcoco+", dict(changes))
    with pytest.raises(DatasetError, match=message):
        read_image_samples(images)


def test_a_missing_or_broken_set_is_refused(images: Path) -> None:
    path = images / "instances_refcocog_train.json"
    path.write_text('{"images": []}', encoding="utf-8")
    with pytest.raises(DatasetError, match=r"refcocog_train\.json: expected COCO's 'images' and"):
        read_image_samples(images)
    path.write_text('{"images": [], "annotations": []}', encoding="utf-8")
    with pytest.raises(DatasetError, match=r"refcocog_train\.json: names no image; download the f"):
        read_image_samples(images)
    path.unlink()
    with pytest.raises(DatasetError, match=r"refcocog_train\.json: cannot be read"):
        read_image_samples(images)


def test_an_image_of_another_size_is_refused_when_it_is_drawn(images: Path) -> None:
    samples = read_image_samples(images)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(images / "train2014" / "a.jpg")
    with pytest.raises(DatasetError, match=r"a\.jpg: found \(8, 8\) .* entry says \(40, 60\)"):
        ImageClips(samples, None).clip((0,), 1)
