"""Ref-DAVIS17 as a data set; it scores as `refsam-bench accuracy` does."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refsam_bench.accuracy.mask_png import read_label_map
from refsam_bench.accuracy.metrics import VOID_LABEL, region_similarity
from refsam_bench.accuracy.ref_davis import RefDavisVideo, load_ref_davis, score_ref_davis
from refsam_bench.datasets.outcome import Answer, Case, ContentHash, MaskTrack, Outcome, View
from refsam_bench.trackers.reference import LogitTracker
from refsam_trt.image.postprocess import label_map_from_logits
from refsam_trt.result.overlay import palette_image
from refsam_trt.run.datasets import DatasetVideo, load_dataset
from refsam_trt.run.meta_expressions import NUM_ANNOTATORS


class RefDavis:
    """Ref-DAVIS17: four annotators, the objects of each merged into label maps.

    J and F are those of `davis-unsup`, which matches predictions with objects; the IoU of a case is
    that of its own expression with its own object.
    """

    def __init__(self, root: Path) -> None:
        annotated = load_ref_davis(root)
        frames = {video.name: video for video in load_dataset("ref-davis", root)}
        self._videos = {video.name: (video, frames[video.name]) for video in annotated}
        self._annotations = root / "valid" / "Annotations"
        self.num_steps = sum(len(video.frames) for video in annotated)

    def description(self) -> dict[str, Any]:
        """Return the names of the videos."""
        return {"name": "ref-davis", "num_videos": len(self._videos), "videos": list(self._videos)}

    def run(self, tracker: LogitTracker, progress: Callable[[], None]) -> Outcome:
        """Score a side as each annotator; the label maps are on disk until they are scored."""
        answers: dict[Case, Answer] = {}
        content = ContentHash()
        with tempfile.TemporaryDirectory(prefix="refsam-report-") as scratch:
            results = Path(scratch)
            for video, frames in self._videos.values():
                answers.update(_answer(tracker, video, frames, results, content, progress))
            scores = score_ref_davis(results, self._annotations, sequences=list(self._videos))
        figures = scores.to_json()
        slices = {
            f"annotator {number}": annotator.figures_json()
            for number, annotator in enumerate(scores.annotators)
        }
        return Outcome(
            {"dataset": "ref-davis", **figures, "slices": slices}, answers, content.sha256
        )

    def view(self, case: Case, index: int) -> View:
        """Read a frame again."""
        video, frames = self._videos[case.sequence]
        with frames.open() as source:
            frame = next(itertools.islice(iter(source), index, None))
        true = read_label_map(video.annotation_folder / f"{case.frames[index]}.png")
        return View(frame, true == _object_of(case), true == VOID_LABEL)


def _answer(
    tracker: LogitTracker,
    video: RefDavisVideo,
    frames: DatasetVideo,
    results: Path,
    content: ContentHash,
    progress: Callable[[], None],
) -> dict[Case, Answer]:
    """Run one video, write its label maps per annotator, keep the masks."""
    cases = [
        Case(video.name, key, text, f"annotator {int(key) % NUM_ANNOTATORS}", video.frames)
        for key, text in frames.expressions.items()
    ]
    tracks, ious = [MaskTrack() for _ in cases], [list[float]() for _ in cases]
    texts = [case.text for case in cases]
    content.texts(texts)
    with frames.open() as source:
        tracked = tracker.logits(content.frames(source), texts)
        for name, logits in zip(video.frames, tracked, strict=True):
            true = read_label_map(video.annotation_folder / f"{name}.png")
            for annotator in range(NUM_ANNOTATORS):
                merged = label_map_from_logits(logits[annotator::NUM_ANNOTATORS])
                folder = results / str(annotator) / video.name
                folder.mkdir(parents=True, exist_ok=True)
                palette_image(merged).save(folder / f"{name}.png")
                for number in range(annotator, len(cases), NUM_ANNOTATORS):
                    object_id = _object_of(cases[number])
                    mask = merged == object_id
                    tracks[number].append(mask)
                    iou = region_similarity(mask, true == object_id, true == VOID_LABEL)
                    ious[number].append(iou)
            progress()
    answered = zip(cases, tracks, ious, strict=True)
    return {case: Answer(track, tuple(values)) for case, track, values in answered}


def _object_of(case: Case) -> int:
    return int(case.expression_id) // NUM_ANNOTATORS + 1
