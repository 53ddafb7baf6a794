"""Ref-YouTube-VOS in a report: every expression is judged by the masks of its object.

Only parts with annotations can be scored. Those of the official `valid` are not public; those of
`train` are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refsam_bench.accuracy.mask_png import read_label_map
from refsam_bench.accuracy.metrics import VOID_LABEL, LabelMap
from refsam_bench.accuracy.protocols import score_expression
from refsam_bench.accuracy.ref_davis import refuse_other_sizes
from refsam_bench.accuracy.scores import ObjectScores, sequence_scores, total_scores
from refsam_bench.datasets.outcome import Answer, Case, ContentHash, Frame, MaskTrack, Outcome, View
from refsam_bench.trackers.reference import LogitTracker
from refsam_trt.errors import DatasetError
from refsam_trt.image.postprocess import mask_from_logits
from refsam_trt.run.datasets import YOUTUBE_THRESHOLD
from refsam_trt.run.meta_expressions import VideoExpressions, expression_file, load_meta_expressions


@dataclass(frozen=True)
class _Video:
    name: str
    images: Path
    annotations: Path
    cases: tuple[tuple[Case, int], ...]

    @property
    def frames(self) -> tuple[str, ...]:
        return self.cases[0][0].frames

    def frame(self, name: str) -> Frame:
        return _read_image(self.images / f"{name}.jpg")

    def label_map(self, name: str) -> LabelMap:
        return read_label_map(self.annotations / f"{name}.png")


class RefYoutubeVos:
    """One part of Ref-YouTube-VOS, its frames those that the expression file lists.

    Args:
        root: holds `<split>/JPEGImages`, `<split>/Annotations` and
            `meta_expressions/<split>/meta_expressions.json`.
        split: `train`, or another that has annotations.

    Raises:
        DatasetError: the first fault found, by file name.
    """

    def __init__(self, root: Path, split: str) -> None:
        path = expression_file(root, split)
        entries = load_meta_expressions(path)
        if not (root / split / "Annotations").is_dir():
            raise DatasetError(
                f"{root / split / 'Annotations'}: no such folder, so nothing can be scored; the "
                "annotations of valid are not public: give --split train, or write results with "
                "refsam-run --dataset ref-youtube-vos and upload them"
            )
        self._split = split
        self._videos = {
            name: _checked(root / split, name, entry, path) for name, entry in entries.items()
        }
        self.num_steps = sum(len(video.frames) for video in self._videos.values())

    def description(self) -> dict[str, Any]:
        """Return which part it is and how large."""
        num_videos = len(self._videos)
        return {"name": "ref-youtube-vos", "split": self._split, "num_videos": num_videos}

    def run(self, tracker: LogitTracker, progress: Callable[[], None]) -> Outcome:
        """Score a side on every expression."""
        content = ContentHash()
        answers: dict[Case, Answer] = {}
        sequences = []
        for video in self._videos.values():
            tracks = _track(tracker, video, content, progress)
            objects = []
            for (case, object_id), track in zip(video.cases, tracks, strict=True):
                scored = _score(video, case, object_id, track)
                answers[case] = Answer(track, scored.j_frames)
                objects.append(scored)
            sequences.append(sequence_scores(video.name, objects))
        figures = total_scores("per-expression", sequences).to_json()
        accuracy = {"dataset": "ref-youtube-vos", **figures, "slices": {}}
        return Outcome(accuracy, answers, content.sha256)

    def view(self, case: Case, index: int) -> View:
        """Read a frame again."""
        video = self._videos[case.sequence]
        object_id = dict(video.cases)[case]
        true = video.label_map(case.frames[index])
        mask = true == object_id
        return View(video.frame(case.frames[index]), mask, np.zeros_like(mask))


def _track(
    tracker: LogitTracker, video: _Video, content: ContentHash, progress: Callable[[], None]
) -> list[MaskTrack]:
    texts = [case.text for case, _ in video.cases]
    content.texts(texts)
    frames = content.frames(video.frame(name) for name in video.frames)
    tracks = [MaskTrack() for _ in texts]
    for logits in tracker.logits(frames, texts):
        for track, plane in zip(tracks, logits, strict=True):
            track.append(mask_from_logits(plane, YOUTUBE_THRESHOLD))
        progress()
    return tracks


def _score(video: _Video, case: Case, object_id: int, track: MaskTrack) -> ObjectScores:
    clip = (
        (name, track[index].astype(np.uint8), (video.label_map(name) == object_id).astype(np.uint8))
        for index, name in enumerate(video.frames)
    )
    return score_expression(video.name, case.expression_id, clip)


def _checked(split: Path, name: str, entry: VideoExpressions, path: Path) -> _Video:
    images, annotations = split / "JPEGImages" / name, split / "Annotations" / name
    present: set[int] = set()
    size_hw: tuple[int, ...] | None = None
    for frame in entry.frames:
        shape = _read_image(images / f"{frame}.jpg").shape[:2]
        label_map = read_label_map(annotations / f"{frame}.png")
        size_hw = size_hw or shape
        sizes = {images / f"{frame}.jpg": shape, annotations / f"{frame}.png": label_map.shape}
        refuse_other_sizes(sizes, size_hw)
        present.update(np.unique(label_map).tolist())
    object_ids = sorted(present - {0, VOID_LABEL})
    cases = []
    for key, expression in entry.expressions.items():
        ids = expression.object_ids
        if len(ids) != 1 or not ids[0].isdecimal() or int(ids[0]) not in object_ids:
            raise DatasetError(
                f"{path}: video {name}, expression {key} names object {', '.join(ids) or 'none'}, "
                f"expected one of {object_ids}, which the masks in {annotations} have; correct "
                "the expressions or restore the masks"
            )
        cases.append((Case(name, key, expression.text, None, entry.frames), int(ids[0])))
    return _Video(name, images, annotations, tuple(cases))


def _read_image(path: Path) -> Frame:
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise DatasetError(f"{path}: no readable JPEG ({error}); restore the file") from error
