"""What a scoring returns: figures per object, per sequence and over all, and their JSON form."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from refsam_bench.accuracy.metrics import FloatArray, statistics


@dataclass(frozen=True, kw_only=True)
class Figures:
    """J and F of something: means and recalls in 0..1, decays in -1..1 (NaN: there is none)."""

    j: float
    f: float
    j_recall: float
    f_recall: float
    j_decay: float
    f_decay: float

    @property
    def j_and_f(self) -> float:
        """The mean of `j` and `f`, the figure that DAVIS ranks by."""
        return (self.j + self.f) / 2

    def figures_json(self) -> dict[str, Any]:
        """Return the seven figures by name; a decay that does not exist becomes null."""
        names = ("j_and_f", "j", "f", "j_recall", "f_recall", "j_decay", "f_decay")
        values = {name: getattr(self, name) for name in names}
        return {name: None if math.isnan(value) else value for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class ObjectScores(Figures):
    """Figures of one object of one sequence (`per-expression`: of one expression).

    `name` is the official `<sequence>_<k>`. Under `davis-unsup` the official k counts the matched
    predictions in the order of their ids and is not the id of the true object: that is `object_id`,
    and `prediction_id` is the predicted object it was matched with.
    `j_frames` and `f_frames` belong to `frames`, the names of the scored frames in order.
    """

    name: str
    object_id: str
    prediction_id: str
    frames: tuple[str, ...]
    j_frames: tuple[float, ...]
    f_frames: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the figures and both ids, ready for `json.dumps`; the frame values stay out."""
        ids = {"object_id": self.object_id, "prediction_id": self.prediction_id}
        return {**ids, **self.figures_json()}


@dataclass(frozen=True, kw_only=True)
class SequenceScores(Figures):
    """Figures of one sequence: the plain mean over its objects."""

    name: str
    objects: tuple[ObjectScores, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the figures of the sequence and of its objects, ready for `json.dumps`."""
        return {**self.figures_json(), "objects": {o.name: o.to_json() for o in self.objects}}


@dataclass(frozen=True, kw_only=True)
class Scores(Figures):
    """Figures of a folder of results: the plain mean over all objects of all sequences.

    `unscored_sequences` have annotations and are not part of the figures.
    """

    protocol: str
    sequences: tuple[SequenceScores, ...]
    unscored_sequences: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything but the frame values, ready for `json.dumps`."""
        return {
            "protocol": self.protocol,
            **self.figures_json(),
            "sequences": {s.name: s.to_json() for s in self.sequences},
            "unscored_sequences": list(self.unscored_sequences),
        }


def mean_figures(parts: Sequence[Figures]) -> Figures:
    """Return the plain mean of every figure, not weighted by frames; `parts` is not empty."""
    return Figures(
        **{
            figure.name: float(np.mean([getattr(part, figure.name) for part in parts]))
            for figure in fields(Figures)
        }
    )


def object_scores(
    *,
    name: str,
    object_id: str,
    prediction_id: str,
    frames: tuple[str, ...],
    j_frames: FloatArray,
    f_frames: FloatArray,
) -> ObjectScores:
    """Return the scores of one object from its frame values, float64 [T] each, T at least 1."""
    j, f = statistics(j_frames), statistics(f_frames)
    return ObjectScores(
        name=name,
        object_id=object_id,
        prediction_id=prediction_id,
        frames=frames,
        j_frames=tuple(j_frames.tolist()),
        f_frames=tuple(f_frames.tolist()),
        j=j.mean,
        f=f.mean,
        j_recall=j.recall,
        f_recall=f.recall,
        j_decay=j.decay,
        f_decay=f.decay,
    )


def sequence_scores(name: str, objects: Sequence[ObjectScores]) -> SequenceScores:
    """Return the scores of one sequence from those of its objects, at least one."""
    return SequenceScores(name=name, objects=tuple(objects), **vars(mean_figures(objects)))


def total_scores(
    protocol: str, sequences: Sequence[SequenceScores], unscored_sequences: Sequence[str] = ()
) -> Scores:
    """Return the scores of several sequences, at least one, from those of their objects.

    Called with a part of the sequences of other scores, it gives the figures of that slice.
    """
    figures = mean_figures([scored for sequence in sequences for scored in sequence.objects])
    return Scores(
        protocol=protocol,
        sequences=tuple(sequences),
        unscored_sequences=tuple(unscored_sequences),
        **vars(figures),
    )
