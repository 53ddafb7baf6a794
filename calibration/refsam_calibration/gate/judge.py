"""What quantisation costs: masks and J&F of the model with some layers quantised, against itself.

Quantised in PyTorch (`fake_quantisation`), so that no graph has to be written to ask.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import numpy as np

from refsam_bench.accuracy.metrics import region_similarity
from refsam_bench.datasets.outcome import Dataset, Outcome
from refsam_bench.datasets.ref_davis import RefDavis
from refsam_bench.datasets.ref_youtube_vos import RefYoutubeVos
from refsam_bench.datasets.synthetic import Synthetic, SyntheticRequest
from refsam_bench.trackers.reference import ReferenceTracker
from refsam_calibration.clips import AnnotatedSet, RefDavisSet, SyntheticSet
from refsam_calibration.gate.journal import Journal
from refsam_calibration.quantise.fake_quantisation import fake_quantised
from refsam_calibration.ranges.ranges import Ranges, sha256_of
from refsam_export.refsam.checkpoint import LoadedModel
from refsam_trt.command.progress import StepCounter
from refsam_trt.errors import DatasetError

NUM_WORST = 5


class WorstFrame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A frame in which masks differ most: of which video, about what, and their IoU."""

    sequence: str
    expression: str
    frame: str
    mask_iou: float


class Judgement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a set of quantised layers costs on a data set.

    content_sha256: of all frames and expressions. reference_j_and_f, j_and_f: of the float model
    and of the quantised one, 0 to 1. mask_iou: of their masks with each other, mean over frames
    and expressions. worst: frames of the least.
    """

    num_layers: int
    content_sha256: str
    reference_j_and_f: float
    j_and_f: float
    mask_iou: float
    worst: tuple[WorstFrame, ...]

    @property
    def drop_points(self) -> float:
        """Loss of J&F in points, 0.01 each; below 0 where quantisation happens to help."""
        return 100.0 * (self.reference_j_and_f - self.j_and_f)

    @property
    def mask_iou_loss(self) -> float:
        """How far the masks are from those of the float model, 0 to 1."""
        return 1.0 - self.mask_iou


def open_set(annotated: AnnotatedSet, folder: Path) -> Dataset:
    """Return an annotated data set, every file of it checked.

    Args:
        annotated: which.
        folder: what relative paths in it start from.

    Raises:
        UsageError, DatasetError: it cannot be used.
    """
    if isinstance(annotated, SyntheticSet):
        return Synthetic(
            SyntheticRequest(annotated.seed, annotated.num_videos, tuple(annotated.slices))
        )
    if isinstance(annotated, RefDavisSet):
        return RefDavis(folder / annotated.root)
    return RefYoutubeVos(folder / annotated.root, annotated.split)


def files_digest(annotated: AnnotatedSet, folder: Path) -> str:
    """Return a SHA-256 of names, sizes and times of change of a data set's files.

    What was judged on files that changed since is judged anew. "" for synthetic videos.

    Raises:
        DatasetError: a file that cannot be read, such as a link to nothing.
    """
    if isinstance(annotated, SyntheticSet):
        return ""
    root = folder / annotated.root
    split = "valid" if isinstance(annotated, RefDavisSet) else annotated.split
    digest = hashlib.sha256()
    try:
        for part in (root / split, root / "meta_expressions" / split):
            for path in sorted(_files(part)):
                facts = path.stat()
                name = path.relative_to(root).as_posix()
                digest.update(f"{name}\n{facts.st_size}\n{facts.st_mtime_ns}\n".encode())
    except OSError as error:
        raise DatasetError(
            f"{error.filename}: cannot be read ({error.strerror}); restore the data set's files"
        ) from error
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, links followed, each folder once."""
    seen: set[str] = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(where, name) for name in names)


class LayerJudge:
    """Judges sets of quantised layers on one data set; what it found once, it remembers.

    Args:
        loaded: the reference, smoothed as the ranges say.
        ranges: of all layers that may be asked about.
        data_set: where accuracy is measured.
        files: `files_digest` of it.
        work: folder of the file that remembers; its name says what it depends on.
        purpose: what that name begins with.
        steps: opens a counter with a label and a total.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        ranges: Ranges,
        data_set: Dataset,
        files: str,
        work: Path,
        purpose: str,
        steps: Callable[[str, int | None], AbstractContextManager[StepCounter]],
    ) -> None:
        self._loaded, self._ranges, self._data_set = loaded, ranges, data_set
        self._purpose, self._steps = purpose, steps
        about = {
            "model": sha256_of(loaded.model),
            "ranges": hashlib.sha256(msgspec.json.encode(ranges)).hexdigest(),
            "data_set": data_set.description(),
            "files": files,
        }
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        self._journal = Journal(work / f"{purpose}-{key[:16]}.jsonl", about)
        self._float: Outcome | None = None

    def is_known(self, layers: Iterable[str]) -> bool:
        """Say whether a set was judged before, so that asking costs nothing."""
        return self._journal.get(_key(layers)) is not None

    def judge(self, layers: Iterable[str], label: str) -> Judgement:
        """Return what it costs to quantise these layers, by module path, and no other.

        `label` is shown while it is measured.
        """
        quantised = set(layers)
        known = self._journal.get(_key(quantised))
        if known is None:
            judgement = self._measure(quantised, label)
            known = msgspec.to_builtins(judgement)
            self._journal.add(_key(quantised), known)
        return msgspec.convert(known, Judgement)

    def _measure(self, layers: set[str], label: str) -> Judgement:
        if self._float is None:
            self._float = self._run({}, f"{self._purpose}: float model")
        amax = {name: value for name, value in self._ranges.amax.items() if name in layers}
        return compare(self._float, self._run(amax, label), len(amax))

    def _run(self, amax: dict[str, float], label: str) -> Outcome:
        scheme = self._ranges.options.scheme
        with (
            self._steps(label, self._data_set.num_steps) as steps,
            fake_quantised(self._loaded.model, amax, scheme),
        ):
            return self._data_set.run(ReferenceTracker(self._loaded), steps.update)


def compare(reference: Outcome, quantised: Outcome, num_layers: int) -> Judgement:
    """Return how one outcome differs from the reference's on the same data set."""
    ious = [
        (case, frame, region_similarity(answer.masks[index], reference.answers[case].masks[index]))
        for case, answer in quantised.answers.items()
        for index, frame in enumerate(case.frames)
    ]
    return Judgement(
        num_layers=num_layers,
        content_sha256=quantised.content_sha256,
        reference_j_and_f=float(reference.accuracy["j_and_f"]),
        j_and_f=float(quantised.accuracy["j_and_f"]),
        mask_iou=float(np.mean([iou for *_, iou in ious])),
        worst=tuple(
            WorstFrame(case.sequence, case.text, frame, iou)
            for case, frame, iou in sorted(ious, key=lambda item: item[-1])[:NUM_WORST]
        ),
    )


def _key(layers: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(layers)).encode()).hexdigest()
