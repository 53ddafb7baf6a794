"""Opens a folder of plans: nothing of it is used before every byte is what the manifest says.

A plan is executable code. Hashes find damage; run only plans that you built or whose origin you
trust. Whether this machine can run them is `plan_check`'s question.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from refsam_trt import limits
from refsam_trt.bundle.folder import (
    HASH_FILE,
    MANIFEST_FILE,
    path_problem,
    scan_folder,
    sha256_of_file,
)
from refsam_trt.bundle.open import Bundle
from refsam_trt.contract.manifest import FileEntry, Manifest
from refsam_trt.contract.plan_manifest import (
    GOLDEN_FILE,
    PLAN_SCHEMA_VERSION,
    PlanManifest,
    plan_id,
)
from refsam_trt.errors import BundleError, PlanDamagedError, UsageError

_BUILD_AGAIN = "build the plans again with refsam-build BUNDLE --output PLANS"


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

    def within(self, manifest: Manifest) -> Manifest:
        """Return a bundle's manifest with the largest sizes of the plans."""
        return msgspec.structs.replace(manifest, limits=self.manifest.limits)

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
        manifest, found_id = _read_manifest(folder)
        sizes = scan_folder(folder)
        for name, entry in manifest.files.items():
            _check_file(folder, name, entry, sizes)
    except BundleError as error:
        raise PlanDamagedError(str(error)) from error
    unlisted = sizes.keys() - manifest.files.keys() - {MANIFEST_FILE, HASH_FILE}
    if unlisted:
        raise PlanDamagedError(
            f"{folder}: {sorted(unlisted)[0]!r} is not listed in the manifest; plans are never "
            "changed: remove what was added"
        )
    _check_names(folder, manifest)
    return Plans(folder, manifest, found_id)


def _read_manifest(folder: Path) -> tuple[PlanManifest, str]:
    path = folder / MANIFEST_FILE
    raw, written = _read(path), _read(folder / HASH_FILE)
    found_id = plan_id(raw)
    if written != f"{found_id}\n".encode():
        raise PlanDamagedError(
            f"{path}: its SHA-256 is {found_id}, {HASH_FILE} says {written[:64]!r}: one of the two "
            f"was altered; {_BUILD_AGAIN}"
        )
    try:
        manifest = msgspec.json.decode(raw, type=PlanManifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PlanDamagedError(
            f"{path}: not a plan manifest of schema {PLAN_SCHEMA_VERSION} ({error}); {_BUILD_AGAIN}"
        ) from error
    if manifest.schema_version != PLAN_SCHEMA_VERSION:
        raise PlanDamagedError(
            f"{path}: schema version {manifest.schema_version}, {PLAN_SCHEMA_VERSION} expected; "
            f"{_BUILD_AGAIN} of this version"
        )
    return manifest, found_id


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limits.MAX_MANIFEST_BYTES)
    except OSError as error:
        raise PlanDamagedError(
            f"{path}: cannot be read ({error.strerror}); give a folder that refsam-build wrote"
        ) from error


def _check_file(folder: Path, name: str, entry: FileEntry, sizes: dict[str, int]) -> None:
    path = folder / name
    if problem := path_problem(name):
        raise PlanDamagedError(f"{folder}: lists {name!r}, a path that {problem}; do not use it")
    if name not in sizes:
        raise PlanDamagedError(f"{path}: missing, but listed in the manifest; {_BUILD_AGAIN}")
    if sizes[name] != entry.size_bytes:
        raise PlanDamagedError(
            f"{path}: {sizes[name]} bytes, the manifest says {entry.size_bytes}: truncated or "
            f"changed; {_BUILD_AGAIN}"
        )
    found = sha256_of_file(path)
    if found != entry.sha256:
        raise PlanDamagedError(
            f"{path}: SHA-256 {found}, the manifest says {entry.sha256}: damaged or changed; "
            f"{_BUILD_AGAIN}"
        )


def _check_names(folder: Path, manifest: PlanManifest) -> None:
    needed = {entry.file for entry in manifest.graphs.values()} | {GOLDEN_FILE}
    if missing := sorted(needed - manifest.files.keys()):
        raise PlanDamagedError(f"{folder}: {missing[0]!r} is not among files; {_BUILD_AGAIN}")
