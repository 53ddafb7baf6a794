"""Ref-YouTube-VOS and Ref-DAVIS17 as sources of training clips, checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from refsam_bench.accuracy.mask_png import read_label_map
from refsam_train.data.augment import Sizes, augment
from refsam_train.data.clips import Clip
from refsam_trt.errors import DatasetError
from refsam_trt.run.meta_expressions import VideoExpressions, expression_file, load_meta_expressions

# The neighbours of a frame are at most this far (refsam-model 9.2).
_FARTHEST = 3
# An object that so many draws do not show is rare; an empty mask is a valid target (9.3).
_DRAWS = 8
# Values of label maps that are no object: the background, and pixels that nobody judges.
_NO_OBJECTS = {0, 255}


@dataclass(frozen=True)
class VideoSample:
    """An expression of a video: `<images>/<frame>.jpg`, `<annotations>/<frame>.png`."""

    images: Path
    annotations: Path
    frames: tuple[str, ...]
    text: str
    object_ids: tuple[int, ...]


@dataclass(frozen=True)
class VideoClips:
    """Draws clips around random frames of random expressions, which `read_video_samples` reads.

    sizes: of the augmentation, None for none.
    """

    samples: tuple[VideoSample, ...]
    sizes: Sizes | None

    def clip(self, key: tuple[int, ...], num_frames: int) -> Clip:
        """Return the clip of this key; drawn again when the object is in none of its frames."""
        rng = np.random.default_rng(key)
        for _ in range(_DRAWS):
            sample = self.samples[rng.integers(len(self.samples))]
            clip = _read_clip(sample, _frame_numbers(rng, len(sample.frames), num_frames))
            if clip.masks.any():
                break
        return clip if self.sizes is None else augment(clip, self.sizes, rng)


def read_video_samples(root: Path, split: str) -> tuple[VideoSample, ...]:
    """Return every expression of a data set in the layout of Ref-YouTube-VOS or Ref-DAVIS17.

    Args:
        root: holds `<split>/JPEGImages`, `<split>/Annotations` and
            `meta_expressions/<split>/meta_expressions.json`.
        split: usually `train`.

    Raises:
        DatasetError: the first fault, by file name: no expression file, a frame or mask missing,
            masks of another size, an object id that no mask of the video has.
    """
    path = expression_file(root, split)
    videos = load_meta_expressions(path).items()
    return tuple(
        s for name, video in videos for s in _video_samples(root / split, name, video, path)
    )


def _video_samples(
    split: Path, name: str, video: VideoExpressions, path: Path
) -> list[VideoSample]:
    images, annotations = split / "JPEGImages" / name, split / "Annotations" / name
    if not images.is_dir():
        raise DatasetError(
            f"{images}: no such folder, but {path} has expressions for {name}; restore the frames"
        )
    present = _check_frames(images, annotations, video.frames)
    samples = []
    for key, expression in video.expressions.items():
        where = f"{path}: video {name}, expression {key}"
        ids = tuple(_object_id(value, where) for value in expression.object_ids)
        unknown = sorted(set(ids) - present)
        if unknown or not ids:
            raise DatasetError(
                f"{where}: obj_id {unknown or 'missing'}, but the masks in {annotations} have "
                f"{sorted(present)}; correct the id or restore the masks"
            )
        samples.append(VideoSample(images, annotations, video.frames, expression.text, ids))
    return samples


def _check_frames(images: Path, annotations: Path, frames: tuple[str, ...]) -> set[int]:
    """Read all masks of a video and return the ids in them."""
    present: set[int] = set()
    for frame in frames:
        image_path, mask_path = images / f"{frame}.jpg", annotations / f"{frame}.png"
        label_map = read_label_map(mask_path)
        with _opened(image_path) as image:
            size_hw = image.height, image.width
        if label_map.shape != size_hw:
            raise DatasetError(
                f"{mask_path}: found {_size(label_map.shape)} pixels (height x width), but "
                f"{image_path} has {_size(size_hw)}; restore the pair"
            )
        present.update(int(value) for value in np.unique(label_map))
    return present - _NO_OBJECTS


def _object_id(value: str, where: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= 254:
        raise DatasetError(f"{where}: obj_id {value!r}; expected a whole number from 1 to 254")
    return int(value)


def _size(hw: tuple[int, ...]) -> str:
    return "x".join(map(str, hw))


def _frame_numbers(rng: np.random.Generator, total: int, num_frames: int) -> list[int]:
    """Return sorted numbers: a frame, one up to three before, one up to three after, then any."""
    middle = int(rng.integers(total))
    before, after = (int(rng.integers(1, _FARTHEST + 1)) for _ in range(2))
    numbers = [middle, max(0, middle - before), min(total - 1, middle + after)][:num_frames]
    numbers += [int(rng.integers(total)) for _ in range(num_frames - len(numbers))]
    return sorted(numbers)


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """Return an image file as uint8 [H, W, 3], RGB.

    Raises:
        DatasetError: no readable image.
    """
    with _opened(path) as image:
        return np.asarray(image.convert("RGB"))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    # Of Pillow's many readers only these two: data sets hold nothing else.
    try:
        with Image.open(path, formats=["JPEG", "PNG"]) as image:
            yield image
    except OSError as error:
        raise DatasetError(f"{path}: no readable frame ({error}); restore the file") from error


def _read_clip(sample: VideoSample, numbers: list[int]) -> Clip:
    names = [sample.frames[number] for number in numbers]
    frames = np.stack([read_rgb(sample.images / f"{name}.jpg") for name in names])
    label_maps = [read_label_map(sample.annotations / f"{name}.png") for name in names]
    masks = np.isin(np.stack(label_maps), sample.object_ids)
    return Clip(frames, masks[None], (sample.text,), f"{sample.images}: {sample.text!r}")
