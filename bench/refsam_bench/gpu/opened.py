"""What a case needs again and again: its variant, its plans, its engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import refsam_trt
from refsam_bench.gpu.bundles import reference_folder
from refsam_bench.gpu.request import Case, Job, Subject
from refsam_engines.variants import variant_for
from refsam_trt.bundle.open import Bundle, open_bundle


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
        return reference_folder(self.subject, self.bundle.manifest.variants[self.variant].split)

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
