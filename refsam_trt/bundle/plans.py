"""Opens a folder of plans: nothing of it is used before every byte is what the manifest says.

A plan is executable code. Hashes find damage; run only plans that you built or whose origin you
trust. Whether this machine can run them is `plan_check`'s question.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from refsam_trt.bundle.folder import MANIFEST_FILE
from refsam_trt.bundle.open import Bundle
from refsam_trt.bundle.sealed import Kind, check_hash, open_sealed
from refsam_trt.contract.plan_manifest import GOLDEN_FILE, PLAN_SCHEMA_VERSION, PlanManifest
from refsam_trt.errors import BundleError, PlanDamagedError, UsageError

_BUILD_AGAIN = "build the plans again with refsam-build BUNDLE --output PLANS"
_PLANS = Kind(
    PlanManifest,
    PLAN_SCHEMA_VERSION,
    "plan folder",
    writer="refsam-build",
    copy_again=_BUILD_AGAIN,
    make_anew=_BUILD_AGAIN,
)


@dataclass(frozen=True)
class Plans:
    """A folder of plans that was opened and found whole. May be shared by threads."""

    folder: Path
    manifest: PlanManifest
    plan_id: str

    @property
    def golden(self) -> Path:
        """File with the golden inputs and outputs."""
        return self.folder / GOLDEN_FILE

    def plan(self, graph: str) -> Path:
        """Return where the plan of a graph lies.

        Raises:
            UsageError: it was not built.
        """
        if graph not in self.manifest.graphs:
            raise UsageError(
                f"{self.folder}: no plan of graph {graph!r}, only "
                f"{', '.join(sorted(self.manifest.graphs))}; {self.manifest.build_command}"
            )
        return self.folder / self.manifest.graphs[graph].file

    def check_bundle(self, bundle: Bundle) -> None:
        """Refuse plans of another bundle.

        Raises:
            PlanDamagedError: bundle id, variant, tensors or graphs are not this bundle's.
        """
        manifest = self.manifest
        if manifest.bundle_id != bundle.bundle_id:
            raise PlanDamagedError(
                f"{self.folder}: built from bundle {manifest.bundle_id}, given was "
                f"{bundle.folder}, bundle {bundle.bundle_id}; {manifest.build_command}"
            )
        variant = bundle.manifest.variants.get(manifest.variant)
        for name, entry in manifest.graphs.items():
            graph = variant.graphs.get(name) if variant else None
            if graph is None or graph.spec != entry.spec:
                raise PlanDamagedError(
                    f"{self.folder}: the plan of graph {name!r} has other tensors than variant "
                    f"{manifest.variant!r} of the bundle; {manifest.build_command}"
                )
            if graph.precision != entry.precision:
                raise PlanDamagedError(
                    f"{self.folder}: the plan of graph {name!r} calls itself {entry.precision}, "
                    f"the bundle's graph is {graph.precision}; {manifest.build_command}"
                )
            if bundle.content_id(graph.file) != entry.graph_id:
                raise PlanDamagedError(
                    f"{self.folder}: the plan of graph {name!r} was built from graph "
                    f"{entry.graph_id}, the bundle has {bundle.content_id(graph.file)}; "
                    f"{manifest.build_command}"
                )


def plans_for(bundle: Bundle, folder: Path, variant: str | None) -> Plans:
    """Open plans that are to stand for the graphs of a bundle.

    Raises:
        PlanDamagedError: not whole, or of another bundle.
        UsageError: of another variant than the one asked for.
    """
    plans = open_plans(folder)
    plans.check_bundle(bundle)
    if variant not in (None, plans.manifest.variant):
        raise UsageError(
            f"{folder}: plans of variant {plans.manifest.variant!r}, asked for was {variant!r}; "
            "leave the variant out, or build its plans with refsam-build"
        )
    return plans


def is_plans(folder: Path) -> bool:
    """Say whether a folder claims to hold plans; a bundle does not."""
    try:
        raw = (folder / MANIFEST_FILE).read_bytes()
        return "builder" in msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except (OSError, msgspec.MsgspecError):
        return False


def open_plans(folder: Path) -> Plans:
    """Open a folder of plans and check every byte of it.

    Raises:
        PlanDamagedError: missing or altered, unlisted or unreadable files, or another schema.
    """
    try:
        manifest, plan_id = open_sealed(folder, _PLANS)
        for name, entry in manifest.files.items():
            check_hash(folder, name, entry, _PLANS)
    except BundleError as error:
        raise PlanDamagedError(error.problem, error.path) from error
    needed = {entry.file for entry in manifest.graphs.values()} | {GOLDEN_FILE}
    if missing := sorted(needed - manifest.files.keys()):
        raise PlanDamagedError(f"{missing[0]!r} is not among files; {_BUILD_AGAIN}", folder)
    return Plans(folder, manifest, plan_id)
