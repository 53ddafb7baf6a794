"""Masks and label maps survive being written, atomically, and wrong arrays are refused."""

import numpy as np
import pytest
import shared_data
from PIL import Image

from refsam_bench.accuracy import read_label_map, write_label_map, write_mask
from refsam_bench.accuracy.mask_png import davis_palette, read_grey_mask, read_mask
from refsam_trt.errors import DatasetError, OutputError, UsageError


def test_label_map_round_trip_with_every_id(tmp_path):
    label_map = np.arange(256, dtype=np.uint8).reshape(8, 32)
    write_label_map(tmp_path / "new" / "map.png", label_map)
    assert (read_label_map(tmp_path / "new" / "map.png") == label_map).all()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["map.png"]
    with Image.open(tmp_path / "new" / "map.png") as image:
        assert image.mode == "P"
        assert image.convert("RGB").getpixel((1, 0)) == (128, 0, 0)


def test_mask_round_trip(tmp_path):
    mask = np.eye(5, 7, dtype=bool)
    write_mask(tmp_path / "mask.png", mask)
    assert (read_grey_mask(tmp_path / "mask.png") == mask * 255).all()
    assert (read_mask(tmp_path / "mask.png") == mask).all()


def test_palette_is_the_one_of_davis():
    path = shared_data.path("ref-davis-mini", "valid", "Annotations", "schoolgirls", "00000.png")
    with Image.open(path) as image:
        official = np.array(image.getpalette()).reshape(-1, 3)
    assert (davis_palette()[:8] == official[:8]).all()


def test_wrong_arrays_are_refused(tmp_path):
    path = tmp_path / "mask.png"
    with pytest.raises(UsageError, match=r"a mask is bool \[height, width\], not uint8 \[2, 3\]"):
        write_mask(path, np.zeros((2, 3), np.uint8))
    with pytest.raises(UsageError, match=r"a label map is uint8 .*, not uint8 \[1, 2, 3\]"):
        write_label_map(path, np.zeros((1, 2, 3), np.uint8))
    with pytest.raises(UsageError, match=r"a label map is uint8 .*, not int64 \[2, 3\]"):
        write_label_map(path, np.zeros((2, 3), np.int64))
    assert not path.exists()


def test_grey_mask_of_other_values_is_refused(tmp_path):
    path = tmp_path / "mask.png"
    write_label_map(path, np.ones((2, 3), np.uint8))
    with pytest.raises(DatasetError, match="found a PNG of mode P, expected an 8-bit grey PNG of"):
        read_grey_mask(path)
    Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) + 1).save(path)
    with pytest.raises(DatasetError, match=r"found the values 1, 2, 3, 4, 5, \.\.\., expected 0"):
        read_grey_mask(path)


def test_file_that_cannot_be_written(tmp_path):
    (tmp_path / "mask.png").mkdir()
    with pytest.raises(OutputError, match=r"mask\.png: cannot be written .*no folder has this"):
        write_mask(tmp_path / "mask.png", np.zeros((2, 3), bool))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_mask(tmp_path / "file" / "mask.png", np.zeros((2, 3), bool))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mask.png"]
