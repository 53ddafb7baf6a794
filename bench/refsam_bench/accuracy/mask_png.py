"""Strict reading of label maps and binary masks that are PNG files."""

from pathlib import Path

import numpy as np
from PIL import Image

from refsam_bench.accuracy.metrics import LabelMap
from refsam_trt.errors import DatasetError

# What Pillow calls 8-bit palette, 8-bit grey and 1-bit grey.
_LABEL_MODES = ("P", "L", "1")
_EXPECTED = "a palette or grey PNG of at most 8 bits"


def read_label_map(path: Path) -> LabelMap:
    """Read a palette or grey PNG as object ids: uint8 [H, W], 0 background, 255 void.

    Raises:
        DatasetError: the file is missing, broken, or no palette or grey PNG of at most 8 bits.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; expected {_EXPECTED}")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in _LABEL_MODES:
                raise DatasetError(
                    f"{path}: found a PNG of mode {image.mode}, expected {_EXPECTED}; "
                    "convert it or point to the folder of masks"
                )
            return np.array(image, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(
            f"{path}: cannot be read ({error}); expected {_EXPECTED}; write the file again"
        ) from error


def read_mask(path: Path) -> LabelMap:
    """Read a binary mask from a palette or grey PNG: uint8 [H, W], 0 background, 1 object.

    Raises:
        DatasetError: as `read_label_map`, or the file holds several objects.
    """
    values = read_label_map(path)
    ids = np.unique(values[values > 0])
    if ids.size > 1:
        listed = ", ".join(map(str, ids[:5])) + (", ..." if ids.size > 5 else "")
        raise DatasetError(
            f"{path}: found {ids.size} object ids ({listed}), expected one mask: 0 and one "
            "other value; score label maps with davis-semi or davis-unsup"
        )
    return (values > 0).astype(np.uint8)
