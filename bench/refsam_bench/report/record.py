"""The JSON object of a report; every figure of the page is one of it.

`references` and `candidates` are lists, so that bundles, precisions and backends stand side by
side; frames name sides by their `key`.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import refsam_trt
from refsam_bench.datasets.outcome import Answer, Case, Outcome
from refsam_bench.report.provenance import bundle_entry, commit
from refsam_bench.report.quantisation import forms_entries
from refsam_bench.report.request import ReportRequest
from refsam_bench.report.sides import Candidate, Reference, Side
from refsam_bench.speed.measure import environment
from refsam_export.parity.compare import mask_iou

SCHEMA_VERSION = 1
RANDOM_NOTE = "RANDOM WEIGHTS: these figures say nothing about RefSAM"
_DIFFERING = ("j_and_f", "j", "f")


def head(request: ReportRequest, sides: Sequence[Side]) -> dict[str, Any]:
    """Return what concerns the report as a whole."""
    is_random = any(side.has_random_weights for side in sides)
    bundles = {s.bundle.bundle_id: s.bundle for s in sides if isinstance(s, Candidate)}
    return {
        "schema_version": SCHEMA_VERSION,
        "title": request.title,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "tool": f"refsam-bench report {refsam_trt.__version__}",
        "commit": commit(),
        "random_weights": is_random,
        "warning": RANDOM_NOTE if is_random else None,
        "environment": environment(request.num_threads),
        "bundles": [bundle_entry(bundle) for bundle in bundles.values()],
        "quantisation_forms": forms_entries(request.forms),
    }


def reference_entry(reference: Reference, outcome: Outcome) -> dict[str, Any]:
    """Return one of `references`."""
    return {
        "key": reference.key,
        "label": reference.label,
        "bundle_id": reference.bundle.bundle_id,
        "random_weights": reference.has_random_weights,
        "accuracy": outcome.accuracy,
    }


def candidate_entry(
    candidate: Candidate,
    backend: str,
    outcomes: Mapping[str, Outcome],
    speed: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return one of `candidates`; `difference` is candidate minus reference, None without one."""
    variant = candidate.bundle.manifest.variants[candidate.variant]
    outcome = outcomes[candidate.key]
    reference = candidate.reference and outcomes[candidate.reference]
    return {
        "key": candidate.key,
        "label": candidate.label,
        "bundle_id": candidate.bundle.bundle_id,
        "variant": candidate.variant,
        "precision": variant.precision,
        "attention": variant.attention,
        "split": variant.split,
        "weight_storage": variant.weight_storage,
        "quantised_share": candidate.quantised_share,
        "left_out": candidate.left_out,
        "backend": backend,
        "random_weights": candidate.has_random_weights,
        "size_bytes": candidate.size_bytes,
        "reference": candidate.reference,
        "reference_absent": candidate.reference_absent,
        "accuracy": outcome.accuracy,
        "worst_iou": min(min(answer.ious) for answer in outcome.answers.values()),
        "difference": _difference(outcome, reference) if reference else None,
        "speed": speed,
    }


def not_run_entry(candidate: Candidate, reason: str) -> dict[str, Any]:
    """Return one of `not_run`."""
    return {
        "label": candidate.label,
        "bundle_id": candidate.bundle.bundle_id,
        "variant": candidate.variant,
        "precision": candidate.bundle.manifest.variants[candidate.variant].precision,
        "reason": reason,
    }


def choose_worst(engines: Mapping[str, Outcome], count: int) -> list[tuple[Case, int]]:
    """Return the frames with the lowest IoU of any engine, lowest first, one per case."""
    lowest = []
    for case in next(iter(engines.values())).answers:
        ious = np.min([outcome.answers[case].ious for outcome in engines.values()], axis=0)
        index = int(np.argmin(ious))
        lowest.append((float(ious[index]), case, index))
    lowest.sort(key=lambda row: row[0])
    return [(case, index) for _, case, index in lowest[:count]]


def choose_examples(engines: Mapping[str, Outcome], count: int) -> list[tuple[Case, int]]:
    """Return middle frames of cases that stand evenly between the worst and the best.

    They are ranked by the mean IoU of the first engine, and what a fair reader should see of it:
    as many below the median as above.
    """
    answers = next(iter(engines.values())).answers
    ranked = sorted(answers, key=lambda case: answers[case].mean_iou)
    count = min(count, len(ranked))
    picked = [ranked[int((number + 0.5) * len(ranked) / count)] for number in range(count)]
    return [(case, len(case.frames) // 2) for case in picked]


def shown_frame(
    name: str, case: Case, index: int, outcomes: Mapping[str, Outcome]
) -> dict[str, Any]:
    """Return the entry of a frame that is shown; its pictures are called `<name>-<side>`."""
    return {
        "picture": name,
        **_place(case, index),
        "expression": case.text,
        "slice": case.slice,
        "iou": {key: outcome.answers[case].ious[index] for key, outcome in outcomes.items()},
    }


def _difference(engine: Outcome, reference: Outcome) -> dict[str, Any]:
    groups = {
        group: {
            name: _minus(figures, reference.accuracy[group][name])
            for name, figures in engine.accuracy[group].items()
        }
        for group in ("slices", "sequences")
    }
    total = _minus(engine.accuracy, reference.accuracy)
    return {**total, **groups, "mask_iou": _agreement(engine.answers, reference.answers)}


def _minus(engine: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float]:
    return {name: engine[name] - reference[name] for name in _DIFFERING}


def _agreement(engine: Mapping[Case, Answer], reference: Mapping[Case, Answer]) -> dict[str, Any]:
    """Return how the masks of two sides agree, whatever the truth, and where they do least."""
    ious = {
        (case, index): mask_iou(answer.masks[index], reference[case].masks[index])
        for case, answer in engine.items()
        for index in range(len(case.frames))
    }
    lowest = min(ious, key=lambda place: ious[place])
    values = list(ious.values())
    return {"mean": float(np.mean(values)), "min": ious[lowest], "lowest_at": _place(*lowest)}


def _place(case: Case, index: int) -> dict[str, Any]:
    return {
        "sequence": case.sequence,
        "expression_id": case.expression_id,
        "frame": case.frames[index],
    }
