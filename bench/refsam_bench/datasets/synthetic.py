"""Synthetic videos as a data set, and J&F of a tracker on them, per slice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from refsam_bench.accuracy.protocols import Protocol, score_clip
from refsam_bench.accuracy.scores import Scores, SequenceScores, sequence_scores, total_scores
from refsam_bench.datasets.outcome import Answer, Case, Outcome, Recorder, View
from refsam_bench.synthetic import SLICES, Slice, SyntheticVideo, generate
from refsam_bench.trackers.blind import Blind, blind_masks
from refsam_bench.trackers.reference import LogitTracker, Masks, Memory, Tracker
from refsam_trt.errors import UsageError

PROTOCOL: Protocol = "per-expression"
RANKED_SLICES: tuple[Slice, ...] = ("attribute", "size", "position")
"""The slices that the project's J&F is stated on, in rotation."""

Probe = Literal["none", "sibling", "forget"]
"""`sibling`: the model hears another object's expression and is scored on the named one: a high
score would mean that it does not listen. `forget`: no frame sees a track token."""


@dataclass(frozen=True)
class SyntheticRequest:
    """Which videos: indices 0 to `num_videos - 1` of `seed`, the slices in rotation."""

    seed: int
    num_videos: int
    slices: tuple[Slice, ...] = RANKED_SLICES
    probe: Probe = "none"

    def __post_init__(self) -> None:
        if unknown := [name for name in self.slices if name not in SLICES]:
            raise UsageError(f"no slice {unknown}; slices: {', '.join(SLICES)}")
        if self.num_videos < 1 or not self.slices:
            raise UsageError("at least one video and one slice are needed")
        if self.probe not in get_args(Probe):
            raise UsageError(f"no probe {self.probe!r}; probes: {', '.join(get_args(Probe))}")

    def slice_of(self, index: int) -> Slice:
        """Return the slice of video `index`."""
        return self.slices[index % len(self.slices)]

    def video(self, index: int) -> SyntheticVideo:
        """Return video `index`."""
        return generate(self.seed, index, slice=self.slice_of(index))


def score_synthetic(
    tracker: Tracker, request: SyntheticRequest, progress: Callable[[], None]
) -> Scores:
    """Score a tracker on the named object of each video; all frames count.

    Args:
        tracker: bundle or reference.
        request: which videos.
        progress: called after each video.
    """
    memory: Memory = "forgotten" if request.probe == "forget" else "kept"

    def answer(video: SyntheticVideo) -> Iterator[Masks]:
        said = target = video.expressions[0]
        if request.probe == "sibling":
            said = next(e for e in video.expressions if e.object_id != target.object_id)
        return tracker.track(iter(video.frames), [said.text], memory)

    return _score_answers(answer, request, progress)


def score_blind(blind: Blind, request: SyntheticRequest, progress: Callable[[], None]) -> Scores:
    """Score an answer that does not depend on the expression (see `blind`)."""

    def answer(video: SyntheticVideo) -> Iterator[Masks]:
        return ([mask] for mask in blind_masks(video, blind))

    return _score_answers(answer, request, progress)


def _score_answers(
    answer: Callable[[SyntheticVideo], Iterator[Masks]],
    request: SyntheticRequest,
    progress: Callable[[], None],
) -> Scores:
    sequences = []
    for index in range(request.num_videos):
        video = request.video(index)
        sequences.append(score_masks(video, answer(video)))
        progress()
    return total_scores(PROTOCOL, sequences)


def to_json(scores: Scores, request: SyntheticRequest) -> dict[str, Any]:
    """Return totals, slices and sequences."""
    by_slice = {
        name: total_scores(PROTOCOL, sequences)
        for name in request.slices
        if (sequences := [s for s in scores.sequences if s.name.startswith(f"{name}-")])
    }
    return {
        "dataset": "synthetic",
        "seed": request.seed,
        "num_videos": request.num_videos,
        "probe": request.probe,
        **scores.to_json(),
        "slices": {name: part.figures_json() for name, part in by_slice.items()},
    }


class Synthetic:
    """Synthetic videos: the named object of each."""

    def __init__(self, request: SyntheticRequest) -> None:
        self._request = request
        self.num_steps = request.num_videos

    def description(self) -> dict[str, Any]:
        """Return what the videos follow from."""
        request = self._request
        return {
            "name": "synthetic",
            "seed": request.seed,
            "num_videos": request.num_videos,
            "slices": list(request.slices),
        }

    def run(self, tracker: LogitTracker, progress: Callable[[], None]) -> Outcome:
        """Score a side on all videos."""
        recorder = Recorder(tracker)
        scores = score_synthetic(recorder, self._request, progress)
        answers = {}
        answered = zip(recorder.texts, recorder.tracks, scores.sequences, strict=True)
        for index, (text, track, sequence) in enumerate(answered):
            judged = sequence.objects[0]
            case = Case(sequence.name, "0", text, self._request.slice_of(index), judged.frames)
            answers[case] = Answer(track, judged.j_frames)
        return Outcome(to_json(scores, self._request), answers, recorder.content.sha256)

    def view(self, case: Case, index: int) -> View:
        """Paint a frame again."""
        number = int(case.sequence.rpartition("-")[2])
        name = self._request.slice_of(number)
        video = generate(self._request.seed, number, slice=name, frame_indices=[index])
        (mask,) = video.mask(video.expressions[0].object_id)
        return View(video.frames[0], mask, np.zeros_like(mask))


def score_masks(video: SyntheticVideo, tracked: Iterable[Masks]) -> SequenceScores:
    """Score the masks of each frame, one of them, on the named object."""
    name = f"{video.slice}-{video.index:05d}"
    true = video.mask(video.expressions[0].object_id)
    clip = (
        (f"{frame:05d}", masks[0].astype(np.uint8), truth.astype(np.uint8))
        for frame, (masks, truth) in enumerate(zip(tracked, true, strict=True))
    )
    objects = score_clip(name, clip, PROTOCOL, num_objects=1, num_predictions=1)
    return sequence_scores(name, objects)
