"""Results and annotations in DAVIS folders, `<sequence>/<frame>.png`, paired and checked.

With masks per expression both sides have one level more, `<sequence>/<expression>/<frame>.png`.
Everything that can be wrong with the files is refused here, before a figure is computed.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from refsam_bench.accuracy.mask_png import read_label_map, read_mask
from refsam_bench.accuracy.metrics import VOID_LABEL, LabelMap
from refsam_trt.errors import DatasetError, UsageError


@dataclass(frozen=True)
class FolderPair:
    """A folder of results and the folder of annotations that judges it.

    `annotated` are the names of all annotated frames in order, `frames` those that are scored.
    `holds_masks` tells binary masks of one expression from label maps of a sequence.
    """

    results: Path
    annotations: Path
    annotated: tuple[str, ...]
    frames: tuple[str, ...]
    holds_masks: bool

    def prediction(self, frame: str) -> LabelMap:
        """Read what was predicted for a frame: uint8 [H, W]."""
        return self._read(self.results / f"{frame}.png")

    def annotation(self, frame: str) -> LabelMap:
        """Read what is true for a frame: uint8 [H, W]; in label maps 255 is void."""
        return self._read(self.annotations / f"{frame}.png")

    def _read(self, path: Path) -> LabelMap:
        return read_mask(path) if self.holds_masks else read_label_map(path)


ObjectCounts: TypeAlias = tuple[int, int]
"""Highest ids in use: true objects are 1 to the first, predictions 1 to the second."""


def scored_sequences(
    results: Path, annotations: Path, sequences: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the sequences to score, and the annotated ones that are left out.

    Args:
        results: folder of result folders.
        annotations: folder of annotation folders.
        sequences: what to score; None means every sequence that has results.

    Raises:
        UsageError: `sequences` is empty or names one twice.
        DatasetError: a folder is missing or empty, or a sequence lacks results or annotations.
    """
    predicted, annotated = _folders(results, "results"), _folders(annotations, "annotations")
    scored = tuple(predicted if sequences is None else sequences)
    if not scored or len(set(scored)) != len(scored):
        raise UsageError(f"sequences: expected at least one and each once, found {list(scored)}")
    for name in scored:
        if name not in annotated:
            raise DatasetError(
                f"{annotations / name}: no annotations for this sequence; name the annotated ones "
                "with sequences, or correct the folder of annotations"
            )
        if name not in predicted:
            raise DatasetError(
                f"{results / name}: no results for this sequence; produce them, or leave it out "
                "of sequences"
            )
    return scored, tuple(name for name in annotated if name not in scored)


def folder_pair(
    results: Path, annotations: Path, *, drop_ends: bool, holds_masks: bool
) -> FolderPair:
    """Pair the frames of one sequence, or of one expression of a video.

    Args:
        results: `<results>/<sequence>`, or below it `<expression>`.
        annotations: the same of the annotations.
        drop_ends: leave out the first and the last annotated frame; their results need not exist.
        holds_masks: whether the files are masks of one expression.

    Raises:
        DatasetError: a frame is missing on either side, or none is left to score.
    """
    annotated = frame_names(annotations)
    frames = annotated[1:-1] if drop_ends else annotated
    if not frames:
        raise DatasetError(
            f"{annotations}: found {len(annotated)} annotated frames, expected at least 3: "
            "davis-semi does not score the first and the last one"
        )
    predicted = set(frame_names(results, refuse_gaps=False))
    missing = [frame for frame in frames if frame not in predicted]
    if missing:
        raise DatasetError(
            f"{results / missing[0]}.png: no such file; {len(missing)} of {len(frames)} scored "
            "frames have no result; run the missing frames (names must equal the annotations')"
        )
    return FolderPair(results, annotations, annotated, frames, holds_masks)


def expression_pairs(results: Path, annotations: Path) -> list[FolderPair]:
    """Pair the masks of every expression of one video.

    Raises:
        DatasetError: an expression or a frame is missing on either side.
    """
    predicted = _folders(results, "results of the expressions")
    annotated = _folders(annotations, "annotations of the expressions")
    for name in sorted({*predicted, *annotated}):
        for folder, names in ((results, predicted), (annotations, annotated)):
            if name not in names:
                raise DatasetError(
                    f"{folder / name}: no such folder; results and annotations must have the "
                    "same expressions"
                )
    return [
        folder_pair(results / name, annotations / name, drop_ends=False, holds_masks=True)
        for name in annotated
    ]


def check_pair(pair: FolderPair, max_proposals: int | None) -> ObjectCounts:
    """Read every file of a pair and count the objects.

    True objects are counted in the first annotated frame, also where that frame is not scored; an
    object that only appears later does not count (official behaviour).

    Args:
        pair: what to check.
        max_proposals: the highest predicted id that is allowed; None means that of the true
            objects, because predictions are judged by the object of the same id.

    Raises:
        DatasetError: a file cannot be read, has another size than the first annotation or an id
            above the limit, or the first annotation shows no object.
    """
    size_hw = pair.annotation(pair.annotated[0]).shape
    num_objects = 1 if pair.holds_masks else _num_objects(pair)
    num_predictions = 0
    for frame in pair.annotated:
        _check_size(pair.annotations / f"{frame}.png", pair.annotation(frame), size_hw)
    for frame in pair.frames:
        path, prediction = pair.results / f"{frame}.png", pair.prediction(frame)
        _check_size(path, prediction, size_hw)
        highest = int(prediction.max())
        if highest > (num_objects if max_proposals is None else max_proposals):
            raise DatasetError(_id_too_high(path, highest, pair, num_objects, max_proposals))
        num_predictions = max(num_predictions, highest)
    return num_objects, num_predictions


def _id_too_high(
    path: Path, highest: int, pair: FolderPair, num_objects: int, max_proposals: int | None
) -> str:
    if max_proposals is not None:
        expected = f"expected at most {max_proposals} proposals per sequence"
    else:
        first = pair.annotations / f"{pair.annotated[0]}.png"
        expected = f"but no mask has that id: the objects of {first} are 1 to {num_objects}"
    remedy = "write consecutive ids from 1, 0 for background"
    if highest == VOID_LABEL:
        remedy = "write label maps of ids, or score masks of 0 and 255 with per-expression"
    return f"{path}: found object id {highest}, {expected}; {remedy}"


def _num_objects(pair: FolderPair) -> int:
    path = pair.annotations / f"{pair.annotated[0]}.png"
    first = read_label_map(path)
    num_objects = int(first[first != VOID_LABEL].max(initial=0))
    if num_objects == 0:
        raise DatasetError(
            f"{path}: the first annotation shows no object, so nothing of this sequence can be "
            "scored; correct it, or leave the sequence out with sequences"
        )
    return num_objects


def _check_size(path: Path, label_map: LabelMap, size_hw: tuple[int, ...]) -> None:
    if label_map.shape != size_hw:
        height, width = label_map.shape
        raise DatasetError(
            f"{path}: found a mask of {width}x{height}, expected {size_hw[1]}x{size_hw[0]} "
            "as in the first annotation; write masks in the original size"
        )


def frame_names(folder: Path, *, refuse_gaps: bool = True) -> tuple[str, ...]:
    """Return the names of the PNG files of a folder, without ending, sorted.

    Raises:
        DatasetError: the folder is missing or holds none, or `refuse_gaps` and a number is missing
            between consecutive ones.
    """
    names = sorted(path.stem for path in folder.glob("*.png") if not path.name.startswith("."))
    if not names:
        raise DatasetError(f"{folder}: found no PNG file, expected <frame>.png")
    if refuse_gaps and all(name.isdecimal() for name in names):
        _refuse_gaps(folder, names)
    return tuple(names)


def _refuse_gaps(folder: Path, names: Sequence[str]) -> None:
    """Refuse a hole in a folder that numbers every frame; sparse annotations have no holes."""
    pairs = list(itertools.pairwise(names))
    steps = [int(after) - int(before) for before, after in pairs]
    if 1 not in steps:
        return
    for (before, after), step in zip(pairs, steps, strict=True):
        if step != 1:
            raise DatasetError(
                f"{folder / before}.png: is followed by {after}.png, expected the next number; "
                "restore the frames between them (names are sorted as text: pad with zeros)"
            )


def _folders(root: Path, what: str) -> tuple[str, ...]:
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; expected the {what}")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise DatasetError(f"{root}: found no folder in it, expected the {what}")
    return tuple(names)
