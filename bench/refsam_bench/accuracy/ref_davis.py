"""Ref-DAVIS17: reading and checking the data set, merging objects, scoring four annotators.

Every object has four expressions, one per annotator. For each annotator the masks of all objects
are merged into one label map per frame and scored like a DAVIS result; the four results are
averaged (refsam-model.md section 10.1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refsam_bench.accuracy.davis_folders import frame_names
from refsam_bench.accuracy.mask_png import read_label_map
from refsam_bench.accuracy.protocols import pair_results, score_paired
from refsam_bench.accuracy.scores import Figures, Scores, mean_figures
from refsam_trt.errors import DatasetError
from refsam_trt.run.meta_expressions import (
    NUM_ANNOTATORS,
    VideoExpressions,
    expression_file,
    keys_by_object,
    load_meta_expressions,
)


@dataclass(frozen=True)
class RefDavisVideo:
    """One video of Ref-DAVIS17 whose files have been checked.

    `expressions[k][o]` is what annotator k said about the object of id o + 1. Images are
    `<image_folder>/<frame>.jpg`, annotations `<annotation_folder>/<frame>.png`, both of `size_hw`.
    """

    name: str
    frames: tuple[str, ...]
    size_hw: tuple[int, int]
    expressions: tuple[tuple[str, ...], ...]
    image_folder: Path
    annotation_folder: Path


@dataclass(frozen=True, kw_only=True)
class RefDavisScores(Figures):
    """Mean figures of the four annotators, and the scores of each."""

    annotators: tuple[Scores, ...]

    def to_json(self) -> dict[str, Any]:
        """Return means over all and per sequence, and the annotators, ready for `json.dumps`."""
        first = self.annotators[0]
        by_sequence = zip(*(scores.sequences for scores in self.annotators), strict=True)
        return {
            "protocol": f"ref-davis ({first.protocol})",
            **self.figures_json(),
            "sequences": {s[0].name: mean_figures(s).figures_json() for s in by_sequence},
            "annotators": [scores.to_json() for scores in self.annotators],
            "unscored_sequences": list(first.unscored_sequences),
        }


def load_ref_davis(root: Path) -> tuple[RefDavisVideo, ...]:
    """Read the videos of `valid` in the layout of Ref-DAVIS17 and check every file of them.

    Args:
        root: holds `valid/JPEGImages`, `valid/Annotations` and
            `meta_expressions/valid/meta_expressions.json`.

    Raises:
        DatasetError: the expression file names no video or an unknown object, does not hold four
            expressions per object, or a frame is missing, unreadable or of another size.
    """
    path = expression_file(root, "valid")
    entries = load_meta_expressions(path)
    return tuple(_video(root / "valid", name, entry, path) for name, entry in entries.items())


def score_ref_davis(
    results: Path, annotations: Path, sequences: Sequence[str] | None = None
) -> RefDavisScores:
    """Score the label maps of four annotators with `davis-unsup` and average them.

    Args:
        results: `<annotator 0..3>/<video>/<frame>.png`.
        annotations: `<video>/<frame>.png`.
        sequences: what to score; None means every video that any annotator has.

    Raises:
        DatasetError: an annotator, a video or a frame is missing or cannot be used.
        UsageError, MissingExtraError: as for `score_results`.
    """
    folders = [results / str(annotator) for annotator in range(NUM_ANNOTATORS)]
    for folder in folders:
        if not folder.is_dir():
            raise DatasetError(
                f"{folder}: no such folder; expected the folders 0 to {NUM_ANNOTATORS - 1} in "
                f"{results}, one per annotator"
            )
    if sequences is None:
        sequences = sorted({p.name for f in folders for p in f.iterdir() if p.is_dir()})
    paired = [pair_results(folder, annotations, "davis-unsup", sequences) for folder in folders]
    scores = score_paired(paired)
    return RefDavisScores(annotators=tuple(scores), **vars(mean_figures(scores)))


def _video(split: Path, name: str, entry: VideoExpressions, path: Path) -> RefDavisVideo:
    images, annotations = split / "JPEGImages" / name, split / "Annotations" / name
    _refuse_other_frames(annotations, entry.frames, path)
    keys = keys_by_object(entry, f"{path}: video {name}")
    texts = [entry.expressions[key].text for key in keys]
    expressions = tuple(tuple(texts[k::NUM_ANNOTATORS]) for k in range(NUM_ANNOTATORS))
    size_hw = _checked_size(images, annotations, entry.frames, len(expressions[0]), path)
    return RefDavisVideo(name, entry.frames, size_hw, expressions, images, annotations)


def _refuse_other_frames(annotations: Path, frames: Sequence[str], path: Path) -> None:
    annotated = set(frame_names(annotations))
    for frame in frames:
        if frame not in annotated:
            raise DatasetError(
                f"{annotations / frame}.png: no such file, though {path} lists the frame; "
                "restore the annotation"
            )
    extra = sorted(annotated - set(frames))
    if extra:
        raise DatasetError(
            f"{annotations / extra[0]}.png: {path} does not list this frame; list every frame "
            "that is annotated, or remove the file"
        )


def _checked_size(
    images: Path, annotations: Path, frames: Sequence[str], num_objects: int, path: Path
) -> tuple[int, int]:
    """Return the size of a video after comparing all its files and finding all its objects."""
    seen: set[int] = set()
    size_hw = _image_size_hw(images / f"{frames[0]}.jpg")
    for frame in frames:
        label_map = read_label_map(annotations / f"{frame}.png")
        seen.update(np.unique(label_map).tolist())
        sizes = {
            images / f"{frame}.jpg": _image_size_hw(images / f"{frame}.jpg"),
            annotations / f"{frame}.png": label_map.shape,
        }
        refuse_other_sizes(sizes, size_hw)
    for object_id in range(1, num_objects + 1):
        if object_id not in seen:
            raise DatasetError(
                f"{path}: names object {object_id} of video {images.name}, but no mask in "
                f"{annotations} has that id; correct the expressions or the annotations"
            )
    return size_hw


def refuse_other_sizes(sizes: Mapping[Path, tuple[int, ...]], size_hw: tuple[int, ...]) -> None:
    """Refuse a file, image or label map, that is not of the height and width of its video."""
    for file, file_hw in sizes.items():
        if file_hw != size_hw:
            raise DatasetError(
                f"{file}: found {file_hw[1]}x{file_hw[0]}, expected {size_hw[1]}x{size_hw[0]} "
                "as in the first image; restore the original file"
            )


def _image_size_hw(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            return image.height, image.width
    except (OSError, SyntaxError) as error:
        raise DatasetError(
            f"{path}: cannot be read as a JPEG ({error}); restore the frame"
        ) from error
