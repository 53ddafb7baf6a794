"""The bundle that is measured, made here if need be, its reference, and its cases opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import refsam_trt
from refsam_bench.gpu.request import Case, GpuRequest, Job, Subject
from refsam_bench.gpu.steps import StepRunner
from refsam_bench.report.provenance import bundle_entry
from refsam_engines.variants import variant_for
from refsam_export.exporter import export_unproven
from refsam_export.parity.reference import write_reference
from refsam_export.request import ExportRequest
from refsam_export.source import load_source
from refsam_trt.bundle.open import Bundle, open_bundle


def make_bundle(job: Job, steps: StepRunner) -> None:
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
        # Golden outputs are those of fp32 graphs.
        precisions=tuple(dict.fromkeys(("fp32", *request.precisions))),
    )
    return bundle_entry(export_unproven(export, print))


def _reference(request: GpuRequest, subject: Subject) -> dict[str, Any]:
    bundle = open_bundle(subject.bundle, verify="deferred")
    loaded = load_source(bundle, request.source)
    splits: set[Any] = {variant.split for variant in bundle.manifest.variants.values()}
    for split in sorted(splits):
        folder = subject.reference(split)
        folder.mkdir(parents=True)
        write_reference(loaded, split, request.parity_frames, folder)
    return {"num_frames": request.parity_frames, "splits": sorted(splits), "device": "cpu"}


@dataclass(frozen=True)
class OpenedCase:
    """A case of a subject, its bundle opened."""

    case: Case
    subject: Subject
    bundle: Bundle
    variant: str

    @property
    def plans(self) -> Path | None:
        """Folder of its plans; None where the backend runs graphs."""
        return self.case.plans(self.subject)

    @property
    def reference(self) -> Path:
        """Folder of the reference that fits the variant."""
        return self.subject.reference(self.bundle.manifest.variants[self.variant].split)

    def load(self) -> refsam_trt.Engine:
        """Load the engine of the case."""
        return refsam_trt.load(
            self.bundle,
            backend=self.case.backend,
            variant=self.variant,
            plans=self.plans,
            verify="deferred",
        )


def open_case(job: Job, case: Case) -> OpenedCase:
    """Open the bundle and find the variant of a case.

    Raises:
        BundleError: the bundle is not whole.
        UsageError: it has no variant of that precision.
    """
    bundle = open_bundle(job.subject.bundle, verify="deferred")
    return OpenedCase(case, job.subject, bundle, variant_for(bundle, case.precision))
