"""Masks and label maps are read as they were written, and other files are refused."""

import numpy as np
from mask_files import write_label_map, write_mask
from PIL import Image

from refsam_bench.accuracy.mask_png import read_label_map, read_mask


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
    assert (read_mask(tmp_path / "mask.png") == mask).all()
