"""RefCOCO, RefCOCO+ and RefCOCOg as sources of training clips (refsam-model 9.2), checked first.

Expected beside each other: `instances_<set>_train.json`, in which every entry of `images` has one
caption and one annotation, and the folder `train2014` with COCO's images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from refsam_train.data.augment import Sizes, augment
from refsam_train.data.clips import Clip
from refsam_train.data.video_sets import read_rgb
from refsam_trt.errors import DatasetError, UsageError
from refsam_trt.result.rle import mask_from_rle

_SETS: Final = ("refcoco", "refcoco+", "refcocog")
_IMAGES: Final = "train2014"

Polygons = tuple[tuple[float, ...], ...]
Outline = Polygons | Mapping[str, Any]


@dataclass(frozen=True)
class ImageSample:
    """An expression of an image and the outline of what it names."""

    path: Path
    size_hw: tuple[int, int]
    text: str
    outline: Outline


@dataclass(frozen=True)
class ImageClips:
    """Draws images; a clip of several frames shows the same image, augmented anew in every frame.

    samples: from `read_image_samples`. sizes: of the augmentation, None for none.
    """

    samples: tuple[ImageSample, ...]
    sizes: Sizes | None

    def clip(self, key: tuple[int, ...], num_frames: int) -> Clip:
        """Return the clip of this key.

        Raises:
            DatasetError: the image has another size than its entry says.
        """
        rng = np.random.default_rng(key)
        sample = self.samples[rng.integers(len(self.samples))]
        frame = read_rgb(sample.path)
        if frame.shape[:2] != sample.size_hw:
            raise DatasetError(
                f"{sample.path}: found {frame.shape[:2]} (height, width), its entry says "
                f"{sample.size_hw}; restore the image"
            )
        mask = outline_mask(sample.outline, sample.size_hw)
        frames, masks = np.stack([frame] * num_frames), np.stack([mask] * num_frames)
        clip = Clip(frames, masks[None], (sample.text,), f"{sample.path}: {sample.text!r}")
        return clip if self.sizes is None else augment(clip, self.sizes, rng)


def read_image_samples(root: Path) -> tuple[ImageSample, ...]:
    """Return the training expressions of the three sets, one after the other.

    Raises:
        DatasetError: the first fault, by file name: a file is missing or not of this form, or an
            entry has no image, caption or outline.
    """
    paths = [root / f"instances_{name}_train.json" for name in _SETS]
    return tuple(sample for path in paths for sample in _read_set(root, path))


def outline_mask(outline: Outline, size_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the inside of an outline, bool [H, W].

    A mapping is COCO's run-length encoding. Polygons are filled by Pillow: pixels on the outline
    may differ from COCO's own tools.
    """
    if isinstance(outline, Mapping):
        return mask_from_rle(outline)
    canvas = Image.new("1", size_hw[::-1])
    for polygon in outline:
        ImageDraw.Draw(canvas).polygon(polygon, fill=1)
    return np.array(canvas)


def _read_set(root: Path, path: Path) -> list[ImageSample]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images, annotations = content["images"], content["annotations"]
        outlines = {entry["image_id"]: entry["segmentation"] for entry in annotations}
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read ({error.strerror}); expected the captions of RefCOCO, one "
            "JSON file per set"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{path}: expected COCO's 'images' and 'annotations' with 'image_id' and 'segmentation'"
            f" ({type(error).__name__}: {error}); download the file again"
        ) from error
    if not images:
        raise DatasetError(f"{path}: names no image; download the file again")
    present = {file.name for file in (root / _IMAGES).glob("*")}
    return [_sample(root, path, entry, outlines, present) for entry in images]


def _sample(
    root: Path, path: Path, entry: Any, outlines: Mapping[Any, Any], present: set[str]
) -> ImageSample:
    try:
        where = f"{path}: image {entry['id']}"
        name, text = str(entry["file_name"]), str(entry["caption"])
        size_hw = int(entry["height"]), int(entry["width"])
        outline = outlines.get(entry["id"])
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path}: an entry of 'images' lacks {error}; expected id, file_name, height, "
            "width and caption"
        ) from error
    if not text.strip():
        raise DatasetError(f"{where}: has no caption; correct or remove the entry")
    if name not in present:
        raise DatasetError(f"{root / _IMAGES / name}: no such file, but {where} needs it")
    return ImageSample(root / _IMAGES / name, size_hw, text, _outline(where, outline, size_hw))


def _outline(where: str, value: Any, size_hw: tuple[int, int]) -> Outline:
    if isinstance(value, dict):
        try:
            mask = mask_from_rle(value)
        except UsageError as error:
            raise DatasetError(f"{where}: {error}; correct the entry") from error
        if mask.shape != size_hw:
            raise DatasetError(f"{where}: run lengths of {mask.shape}, expected {size_hw}")
        return value
    polygons = [tuple(map(float, p)) for p in value] if isinstance(value, list) else []
    if not polygons or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        raise DatasetError(
            f"{where}: no usable 'segmentation'; expected polygons of three points or more, or RLE"
        )
    return tuple(polygons)
