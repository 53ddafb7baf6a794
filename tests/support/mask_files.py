"""Masks and label maps written as PNG files, as data sets and `refsam-run` have them."""

from pathlib import Path

import numpy as np
from PIL import Image

from refsam_trt.result.overlay import palette_image


def write_label_map(path: Path, label_map: np.ndarray) -> None:
    """Write object ids, uint8 [H, W], in the colours of DAVIS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    palette_image(label_map).save(path)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask, bool [H, W], in grey: 0 and 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).save(path)
