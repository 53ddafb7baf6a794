"""Synthetic videos as files: what the reader of Ref-DAVIS17 gets back."""

import numpy as np
import pytest
from PIL import Image

from refsam_bench.accuracy.mask_png import read_label_map
from refsam_bench.accuracy.ref_davis import load_ref_davis
from refsam_bench.synthetic import generate, write_ref_davis
from refsam_trt.errors import OutputError, UsageError

OPTIONS = {"seed": 900_000, "slice": "position", "num_frames": 3, "size_hw": (96, 128)}


def test_round_trip(tmp_path):
    calls = []
    root = tmp_path / "made" / "here"
    names = write_ref_davis(root, num_videos=2, advance=lambda: calls.append(1), **OPTIONS)
    assert names == ("position-900000-000000", "position-900000-000001")
    assert len(calls) == 2
    assert (root / "ImageSets/2017/val.txt").read_text() == "".join(f"{n}\n" for n in names)
    assert [path.name for path in root.parent.iterdir()] == ["here"]

    for index, read in enumerate(load_ref_davis(root)):
        video = generate(index=index, texts_per_object=4, **OPTIONS)
        named = sorted({e.object_id for e in video.expressions})
        assert read.frames == ("00000", "00001", "00002")
        assert read.size_hw == (96, 128)
        texts = {k: [e.text for e in video.expressions if e.object_id == k] for k in named}
        assert read.expressions == tuple(zip(*(texts[k] for k in named), strict=True))
        for row, frame in enumerate(read.frames):
            labels = read_label_map(read.annotation_folder / f"{frame}.png")
            for written, k in enumerate(named, start=1):
                np.testing.assert_array_equal(labels == written, video.label_map[row] == k)
            assert labels.max() == len(named)
            image = np.asarray(Image.open(read.image_folder / f"{frame}.jpg"), np.int64)
            assert np.abs(image - video.frames[row]).mean() < 4.0


def test_refuses_a_folder_that_exists_and_leaves_nothing_half_done(tmp_path):
    (tmp_path / "here").mkdir()
    with pytest.raises(OutputError, match=r"here: exists already; choose another name$"):
        write_ref_davis(tmp_path / "here", num_videos=1, **OPTIONS)
    with pytest.raises(UsageError, match="num_videos 0: give 1 or more"):
        write_ref_davis(tmp_path / "new", num_videos=0, **OPTIONS)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_ref_davis(tmp_path / "new", num_videos=2, advance=stop, **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_says_why_it_could_not_write(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"file: cannot be written .*; choose another place"):
        write_ref_davis(tmp_path / "file" / "new", num_videos=1, **OPTIONS)
