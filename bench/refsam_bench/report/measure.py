"""Runs everything a report needs, and returns it as one JSON object with its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from refsam_bench.datasets.outcome import Dataset, Outcome
from refsam_bench.datasets.ref_davis import RefDavis
from refsam_bench.datasets.ref_youtube_vos import RefYoutubeVos
from refsam_bench.datasets.synthetic import Synthetic, SyntheticRequest
from refsam_bench.report.pictures import draw_row
from refsam_bench.report.record import (
    candidate_entry,
    choose_examples,
    choose_worst,
    head,
    not_run_entry,
    reference_entry,
    shown_frame,
)
from refsam_bench.report.request import ReportRequest
from refsam_bench.report.sides import (
    Candidate,
    Reference,
    Side,
    can_load,
    find_sides,
    needs_folder,
    open_engine,
    open_reference,
)
from refsam_bench.speed.measure import measure_speed
from refsam_bench.speed.request import SpeedRequest
from refsam_trt.backends.select import open_backend
from refsam_trt.command.progress import StepCounter
from refsam_trt.errors import BackendError, InternalError

ShowProgress = Callable[[str, int], AbstractContextManager[StepCounter]]
"""(what is being done, number of steps) -> something that counts them."""


@dataclass(frozen=True)
class MeasuredReport:
    """`record`: ready for `json.dumps`. `pictures`: data URIs by the names the record uses."""

    record: dict[str, Any]
    pictures: dict[str, str]


def measure_report(request: ReportRequest, show: ShowProgress) -> MeasuredReport:
    """Open and check everything, run every side over the data set, time it, choose frames.

    Variants that nobody named and the backend refuses, or that overflow in it, are listed with the
    reason, as long as another one runs.

    Raises:
        BackendError: the backend refuses a variant that was named, or all.
        OutputError: the report could not be written, were it finished.
        RefsamError: a bundle, the data set or the weights of a reference cannot be used.
    """
    request.check_outputs()
    open_backend(request.backend, request.num_threads).close()
    references, candidates = find_sides(request)
    dataset = open_data_set(request)
    outcomes = {r.key: _run_reference(r, dataset, request, show) for r in references}
    backends: dict[str, str] = {}
    refused: dict[str, str] = {}
    for c in candidates:
        try:
            backends[c.key], outcomes[c.key] = _run_engine(c, dataset, request, show)
        except BackendError as error:
            if request.variants or len(refused) + 1 == len(candidates):
                raise
            refused[c.key] = str(error)
    not_run = [not_run_entry(c, refused[c.key]) for c in candidates if c.key in refused]
    candidates = tuple(c for c in candidates if c.key not in refused)
    sides: list[Side] = [*references, *candidates]
    record = {
        **head(request, sides),
        "dataset": _dataset_entry(dataset, outcomes),
        "references": [reference_entry(r, outcomes[r.key]) for r in references],
        "candidates": [
            candidate_entry(c, backends[c.key], outcomes, _time(c, request, show))
            for c in candidates
        ],
        "not_run": not_run,
    }
    engines = {c.key: outcomes[c.key] for c in ranking(candidates)}
    random_keys = {side.key for side in sides if side.has_random_weights}
    pictures: dict[str, str] = {}
    for group, frames in (
        ("worst_frames", choose_worst(engines, request.num_worst)),
        ("examples", choose_examples(engines, request.num_examples)),
    ):
        record[group] = []
        for number, (case, index) in enumerate(frames):
            name = f"{group}-{number}"
            view = dataset.view(case, index)
            pictures |= draw_row(name, view, case, index, outcomes, random_keys)
            record[group].append(shown_frame(name, case, index, outcomes))
    return MeasuredReport(record, pictures)


def open_data_set(request: ReportRequest) -> Dataset:
    """Return the data set that a request names, every file of it checked.

    Raises:
        UsageError, DatasetError: it cannot be used.
    """
    if request.root is None:
        return Synthetic(SyntheticRequest(request.seed, request.num_videos, request.slices))
    if request.dataset == "ref-davis":
        return RefDavis(request.root)
    return RefYoutubeVos(request.root, request.split)


def ranking(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """Return the candidates whose answers decide which frames are shown: the trained, if any."""
    return [c for c in candidates if not c.has_random_weights] or candidates


def _run_reference(
    reference: Reference, dataset: Dataset, request: ReportRequest, show: ShowProgress
) -> Outcome:
    tracker = open_reference(reference, request)
    with show(f"accuracy of {reference.label}", dataset.num_steps) as steps:
        return dataset.run(tracker, steps.update)


def _run_engine(
    candidate: Candidate, dataset: Dataset, request: ReportRequest, show: ShowProgress
) -> tuple[str, Outcome]:
    with (
        open_engine(candidate, request) as (backend, tracker),
        show(f"accuracy of {candidate.label}", dataset.num_steps) as steps,
    ):
        return backend, dataset.run(tracker, steps.update)


def _time(
    candidate: Candidate, request: ReportRequest, show: ShowProgress
) -> dict[str, Any] | None:
    """Return what `refsam-bench speed` says, beside PyTorch where the bundle's weights are here."""
    if not request.num_speed_frames:
        return None
    bundle = candidate.bundle
    speed = SpeedRequest(
        bundle.folder,
        source=request.source if needs_folder(bundle) else None,
        variant=candidate.variant,
        backend=request.backend,
        num_frames=request.num_speed_frames,
        num_threads=request.num_threads,
        with_reference=can_load(bundle, request.source),
    )
    with show(f"speed of {candidate.label}", speed.num_warmup + speed.num_frames) as steps:
        return measure_speed(speed, steps.update).to_json()


def _dataset_entry(dataset: Dataset, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    first, *others = outcomes.values()
    if any(other.content_sha256 != first.content_sha256 for other in others):
        raise InternalError("the sides were not given the same frames and expressions")
    return {
        **dataset.description(),
        "protocol": first.accuracy["protocol"],
        "num_expressions": len(first.answers),
        "num_masks": sum(len(answer.ious) for answer in first.answers.values()),
        "content_sha256": first.content_sha256,
    }
