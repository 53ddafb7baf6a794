"""The bundle that is measured, made here if need be, and what PyTorch computes of it on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refsam_bench.gpu.request import GpuRequest, Job, Subject
from refsam_bench.gpu.steps import Steps
from refsam_bench.report.provenance import bundle_entry
from refsam_export.exporter import export_unproven
from refsam_export.parity.reference import write_reference
from refsam_export.request import ExportRequest
from refsam_export.source import load_source
from refsam_trt.bundle.open import open_bundle


def make_bundle(job: Job, steps: Steps) -> None:
    """Make or open the bundle, and write the reference that all cases are compared with."""
    if steps.run("bundle", lambda: _bundle(job.request, job.subject)) is None:
        steps.skip("reference", "there is no bundle")
        return
    steps.run("reference", lambda: _reference(job.request, job.subject))


def _bundle(request: GpuRequest, subject: Subject) -> dict[str, Any]:
    if subject.preset is None:
        return bundle_entry(open_bundle(subject.bundle))
    export = ExportRequest(
        subject.preset,
        subject.bundle,
        random_init=request.seed,
        precisions=_with_fp32(request.precisions),
    )
    return bundle_entry(export_unproven(export, print))


def _with_fp32(precisions: tuple[str, ...]) -> tuple[str, ...]:
    """Golden outputs are those of fp32 graphs."""
    return tuple(dict.fromkeys(("fp32", *precisions)))


def _reference(request: GpuRequest, subject: Subject) -> dict[str, Any]:
    bundle = open_bundle(subject.bundle, verify="deferred")
    loaded = load_source(bundle, request.source)
    splits: set[Any] = {variant.split for variant in bundle.manifest.variants.values()}
    for split in sorted(splits):
        folder = reference_folder(subject, split)
        folder.mkdir(parents=True)
        write_reference(loaded, split, request.parity_frames, folder)
    return {"num_frames": request.parity_frames, "splits": sorted(splits), "device": "cpu"}


def reference_folder(subject: Subject, split: str) -> Path:
    """Return where the reference of a split lies."""
    return subject.reference / split
