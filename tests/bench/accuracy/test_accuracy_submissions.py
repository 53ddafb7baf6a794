"""The zips for the evaluation servers hold exactly what is asked for, or are not written."""

import json
import zipfile

import numpy as np
import pytest
import shared_data
from mask_files import write_mask
from PIL import Image

from refsam_bench.accuracy.submissions import write_mevis_zip, write_ref_youtube_vos_zip
from refsam_trt.errors import DatasetError
from refsam_trt.run.meta_expressions import load_meta_expressions

VIDEOS = {
    "aa": {"frames": ["00000", "00005"], "expressions": {"0": {"exp": "a"}, "1": {"exp": "b"}}},
    "bb": {"frames": ["00003"], "expressions": {"0": {"exp": "c", "obj_id": [1, 2]}}},
}
NAMES = ["aa/0/00000", "aa/0/00005", "aa/1/00000", "aa/1/00005", "bb/0/00003"]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "valid.json").write_text(json.dumps({"videos": VIDEOS}))
    (tmp_path / "test.json").write_text(json.dumps({"videos": {"bb": VIDEOS["bb"]}}))
    rng = np.random.default_rng(0)
    for name in NAMES:
        size = (6, 8) if name.startswith("aa") else (5, 5)
        write_mask(tmp_path / "results" / f"{name}.png", rng.random(size) < 0.5)
    write_mask(tmp_path / "results/cc/0/00000.png", np.ones((2, 2), bool))
    return tmp_path


def zipped(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def refusal(root, **options):
    with pytest.raises(DatasetError) as caught:
        write_ref_youtube_vos_zip(
            root / "results", root / "valid.json", root / "out.zip", **options
        )
    left = [path.name for path in root.iterdir()]
    assert sorted(left) == ["results", "test.json", "valid.json"]
    return str(caught.value).replace(f"{root}/", "")


def test_ref_youtube_vos_puts_masks_below_annotations(root):
    write_ref_youtube_vos_zip(root / "results", root / "valid.json", root / "out.zip")
    members = zipped(root / "out.zip")
    assert list(members) == [f"Annotations/{name}.png" for name in NAMES]
    for name in NAMES:
        assert members[f"Annotations/{name}.png"] == (root / f"results/{name}.png").read_bytes()


def test_mevis_has_no_parent_folder(root):
    seen = []
    write_mevis_zip(
        root / "results",
        root / "valid.json",
        root / "out.zip",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert list(zipped(root / "out.zip")) == [f"{name}.png" for name in NAMES]
    assert seen == [(done, 5) for done in range(1, 6)]


def test_videos_of_test_are_left_out(root):
    write_ref_youtube_vos_zip(
        root / "results",
        root / "valid.json",
        root / "out.zip",
        test_meta_expressions=root / "test.json",
    )
    assert list(zipped(root / "out.zip")) == [f"Annotations/{name}.png" for name in NAMES[:4]]


def test_equal_masks_make_an_equal_zip(root):
    for name in ("one.zip", "two.zip"):
        write_mevis_zip(root / "results", root / "valid.json", root / name)
    assert (root / "one.zip").read_bytes() == (root / "two.zip").read_bytes()


def test_missing_masks(root):
    (root / "results/aa/1/00005.png").unlink()
    (root / "results/bb/0/00003.png").unlink()
    assert refusal(root) == (
        "results/aa/1/00005.png: no such file; 2 of 5 masks are missing in results; "
        "a submission needs every frame of every expression"
    )


def test_mask_of_another_size(root):
    write_mask(root / "results/aa/1/00005.png", np.zeros((6, 9), bool))
    assert refusal(root).startswith(
        "results/aa/1/00005.png: found a mask of 9x6, expected 8x6 as in the rest of the video"
    )


def test_mask_of_zeros_and_ones(root):
    Image.fromarray(np.eye(6, 8, dtype=np.uint8)).save(root / "results/aa/1/00005.png")
    assert refusal(root).startswith("results/aa/1/00005.png: found the values 1, expected 0 and")


def test_test_file_that_leaves_nothing(root):
    text = refusal(root, test_meta_expressions=root / "valid.json")
    assert text.startswith("valid.json: names every video of valid.json; nothing is left")


def test_an_older_zip_survives_a_refusal(root):
    (root / "out.zip").write_bytes(b"older")
    write_mask(root / "results/aa/1/00005.png", np.zeros((6, 9), bool))
    with pytest.raises(DatasetError):
        write_mevis_zip(root / "results", root / "valid.json", root / "out.zip")
    assert (root / "out.zip").read_bytes() == b"older"


def test_real_expression_file_of_ref_youtube_vos():
    path = shared_data.path(
        "ref-youtube-vos-meta", "meta_expressions", "valid", "meta_expressions.json"
    )
    videos = load_meta_expressions(path)
    assert len(videos) == 507
    assert sum(len(video.expressions) for video in videos.values()) == 2096
