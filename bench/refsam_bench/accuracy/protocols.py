"""Which masks are compared with which, and which frames count: the protocols of `score_results`.

`davis-semi`: prediction k is judged by object k; first and last frame are left out; void counts as
background. `davis-unsup`: predictions and objects of a video are matched so that the mean of
(J + F) / 2 is greatest; all frames count; void is ignored. `per-expression`: one mask per
expression, judged by the mask of its object; all frames count; an expression counts like an object.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from refsam_bench.accuracy.davis_folders import (
    FolderPair,
    ObjectCounts,
    check_pair,
    expression_pairs,
    folder_pair,
    scored_sequences,
)
from refsam_bench.accuracy.metrics import (
    VOID_LABEL,
    FloatArray,
    LabelMap,
    outline_agreement,
    outline_of,
)
from refsam_bench.accuracy.scores import (
    ObjectScores,
    Scores,
    object_scores,
    sequence_scores,
    total_scores,
)
from refsam_trt.errors import MissingExtraError, UsageError

Protocol: TypeAlias = Literal["davis-semi", "davis-unsup", "per-expression"]

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
MAX_PROPOSALS = 20


@dataclass(frozen=True)
class PairedResults:
    """Folders of results with their annotations, found but not read yet.

    `pairs` are (sequence, folders), the expressions of one video one after the other.
    """

    protocol: Protocol
    pairs: tuple[tuple[str, FolderPair], ...]
    unscored_sequences: tuple[str, ...]


def score_results(
    results: Path,
    annotations: Path,
    protocol: Protocol,
    sequences: Sequence[str] | None = None,
) -> Scores:
    """Score a folder of results against a folder of annotations.

    Every file is read and checked before the first frame is scored.

    Args:
        results: `<sequence>/<frame>.png`; `per-expression`: `<sequence>/<expression>/<frame>.png`.
        annotations: the same layout; label maps of 0 background, 1..N objects, 255 void;
            `per-expression`: masks.
        protocol: one of `PROTOCOLS`.
        sequences: what to score; None means every sequence that has results. Annotated sequences
            that are left out are named in the scores.

    Raises:
        UsageError: unknown protocol, or `sequences` is empty or names one twice.
        DatasetError: a file or folder cannot be used; the text names it.
        MissingExtraError: `davis-unsup` without SciPy.
    """
    return score_paired([pair_results(results, annotations, protocol, sequences)])[0]


def pair_results(
    results: Path, annotations: Path, protocol: Protocol, sequences: Sequence[str] | None
) -> PairedResults:
    """Find the files that `score_results` would score; arguments and errors are the same."""
    _refuse_unknown(protocol)
    if protocol == "davis-unsup":
        _assignment_solver()
    names, unscored = scored_sequences(results, annotations, sequences)
    pairs = [
        (name, pair)
        for name in names
        for pair in _pairs(results / name, annotations / name, protocol)
    ]
    return PairedResults(protocol, tuple(pairs), unscored)


def score_paired(many: Sequence[PairedResults]) -> list[Scores]:
    """Check the files of all results, then score them one after the other.

    Raises:
        DatasetError: a file cannot be used; nothing has been scored then.
    """
    counts = [_counts(paired) for paired in many]
    return [_scores(*each) for each in zip(many, counts, strict=True)]


def score_clip(
    name: str,
    clip: Iterable[tuple[str, LabelMap, LabelMap]],
    protocol: Protocol,
    *,
    num_objects: int,
    num_predictions: int,
) -> list[ObjectScores]:
    """Score the frames of one clip, which may be made on the fly, and return its objects.

    Args:
        name: the sequence; objects are called `<name>_<k>`.
        clip: (frame name, predicted, true) of the frames that count, at least one, in order; uint8
            [H, W] label maps. True ids above `num_objects` are background; 255 is void.
        protocol: how void is treated, and whether predictions are matched; no frame is dropped.
        num_objects: number of true objects, at least 1.
        num_predictions: highest predicted id of the whole clip.

    Raises:
        UsageError: unknown protocol, no frame, or a predicted id above `num_predictions`.
        MissingExtraError: `davis-unsup` without SciPy.
    """
    _refuse_unknown(protocol)
    num_rows = max(num_predictions, num_objects)
    frames, j_parts, f_parts = [], [], []
    for frame, predicted, true in clip:
        if predicted.max() > num_rows:
            raise UsageError(
                f"{name}, frame {frame}: predicted id {predicted.max()} is above {num_rows}; "
                "give num_predictions as the highest id of the clip"
            )
        if protocol == "davis-unsup":
            predicted = np.where(true == VOID_LABEL, 0, predicted)
        j, f = _frame_scores(predicted, true, num_rows, num_objects)
        frames.append(frame)
        j_parts.append(j)
        f_parts.append(f)
    if not frames:
        raise UsageError(f"{name}: no frame to score; give at least one")
    j_frames, f_frames = np.stack(j_parts, axis=-1), np.stack(f_parts, axis=-1)
    pairs = [(k, k) for k in range(num_objects)]
    if protocol == "davis-unsup":
        pairs = _matched(j_frames, f_frames)
    return [
        object_scores(
            name=f"{name}_{k}",
            object_id=str(true_row + 1),
            prediction_id=str(row + 1),
            frames=tuple(frames),
            j_frames=j_frames[row, true_row],
            f_frames=f_frames[row, true_row],
        )
        for k, (row, true_row) in enumerate(pairs, start=1)
    ]


def score_expression(
    sequence: str, expression: str, clip: Iterable[tuple[str, LabelMap, LabelMap]]
) -> ObjectScores:
    """Score the masks of one expression, 0 and 1, by those of its object; see `score_clip`."""
    (scored,) = score_clip(sequence, clip, "per-expression", num_objects=1, num_predictions=1)
    name = f"{sequence}_{expression}"
    return replace(scored, name=name, object_id=expression, prediction_id=expression)


def _frame_scores(
    predicted: LabelMap, true: LabelMap, num_predictions: int, num_objects: int
) -> tuple[FloatArray, FloatArray]:
    """Return J and F of every prediction with every object: float64 [num_predictions, objects]."""
    true = np.where(true > num_objects, 0, true)
    codes = predicted.astype(np.int64) * (num_objects + 1) + true
    joint = np.bincount(codes.ravel(), minlength=(num_predictions + 1) * (num_objects + 1))
    joint = joint.reshape(num_predictions + 1, num_objects + 1)
    intersections = joint[1:, 1:]
    unions = joint.sum(axis=1)[1:, None] + joint.sum(axis=0)[None, 1:] - intersections
    j = np.where(unions == 0, 1.0, intersections / np.maximum(unions, 1))
    predicted_outlines = [outline_of(predicted == k + 1) for k in range(num_predictions)]
    true_outlines = [outline_of(true == k + 1) for k in range(num_objects)]
    f = [[outline_agreement(p, t) for t in true_outlines] for p in predicted_outlines]
    return j, np.array(f)


def _matched(j_frames: FloatArray, f_frames: FloatArray) -> list[tuple[int, int]]:
    """Return (prediction, object) rows of the best one-to-one matching, by prediction."""
    means = (j_frames.mean(axis=2) + f_frames.mean(axis=2)) / 2
    rows, columns = _assignment_solver()(-means)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def _assignment_solver() -> Callable[..., Any]:
    try:
        # SciPy has no type information of its own.
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise MissingExtraError("bench", "the matching of davis-unsup", str(error)) from error
    solver: Callable[..., Any] = linear_sum_assignment
    return solver


def _pairs(results: Path, annotations: Path, protocol: Protocol) -> list[FolderPair]:
    if protocol == "per-expression":
        return expression_pairs(results, annotations)
    drop_ends = protocol == "davis-semi"
    return [folder_pair(results, annotations, drop_ends=drop_ends, holds_masks=False)]


def _counts(paired: PairedResults) -> list[ObjectCounts]:
    limit = MAX_PROPOSALS if paired.protocol == "davis-unsup" else None
    return [check_pair(pair, limit) for _, pair in paired.pairs]


def _scores(paired: PairedResults, counts: Sequence[ObjectCounts]) -> Scores:
    objects: dict[str, list[ObjectScores]] = {}
    for (name, pair), count in zip(paired.pairs, counts, strict=True):
        scored = _pair_scores(name, pair, count, paired.protocol)
        objects.setdefault(name, []).extend(scored)
    sequences = [sequence_scores(name, members) for name, members in objects.items()]
    return total_scores(paired.protocol, sequences, paired.unscored_sequences)


def _pair_scores(
    sequence: str, pair: FolderPair, counts: ObjectCounts, protocol: Protocol
) -> list[ObjectScores]:
    clip = ((frame, pair.prediction(frame), pair.annotation(frame)) for frame in pair.frames)
    if pair.holds_masks:
        return [score_expression(sequence, pair.annotations.name, clip)]
    num_objects, num_predictions = counts
    return score_clip(
        sequence, clip, protocol, num_objects=num_objects, num_predictions=num_predictions
    )


def _refuse_unknown(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
