"""Opens a bundle: nothing of it is used before it is known to be whole and what it claims to be.

Reads only, so bundles work from read-only file systems. Hashes find corruption; only `expect_id`
finds malice. What the bundle's files mean is told in docs/format/bundle.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from refsam_trt.bundle.folder import (
    COPY_AGAIN,
    HASH_FILE,
    MANIFEST_FILE,
    path_problem,
    scan_folder,
    sha256_of_file,
    unreadable,
)
from refsam_trt.bundle.graph_check import check_graph
from refsam_trt.bundle.read_manifest import is_digest, read_manifest
from refsam_trt.contract.check import check_contract
from refsam_trt.contract.manifest import FileEntry, Manifest
from refsam_trt.errors import BundleError, UsageError

Verify = Literal["full", "deferred"]


@dataclass(frozen=True)
class Bundle:
    """A bundle that was opened: immutable, and used from where it lies. May be shared by threads.

    Attributes:
        folder: where it lies.
        manifest: everything known about it.
        bundle_id: SHA-256 of the canonical manifest, in hexadecimal.
        external_data: per graph file, the files that hold its external data; all relative paths.
    """

    folder: Path
    manifest: Manifest
    bundle_id: str
    external_data: Mapping[str, tuple[str, ...]] = field(repr=False)
    _verified: set[str] = field(default_factory=set, repr=False, compare=False)

    def path(self, relative: str) -> Path:
        """Return where a file of the bundle lies.

        Raises:
            BundleError: the manifest lists no file of that name.
        """
        if relative not in self.manifest.files:
            raise BundleError(f"{self.folder}: the manifest lists no file {relative!r}")
        return self.folder / relative

    def content_id(self, relative: str) -> str:
        """Return a hash of the contents of a file and of a graph's external data.

        As the manifest has them: nothing is read. Equal contents have equal hashes, whatever the
        names of the files and of the bundle.

        Raises:
            BundleError: the manifest lists no file of that name.
        """
        self.path(relative)
        names = (relative, *sorted(self.external_data.get(relative, ())))
        hashes = "".join(self.manifest.files[name].sha256 for name in names)
        return hashlib.sha256(hashes.encode()).hexdigest()

    def verify_file(self, relative: str) -> Path:
        """Check the contents of a file, and of a graph's external data, and return where it lies.

        To be called just before a file is used. Each file is hashed once per `Bundle`; after
        `open_bundle(..., verify="full")` none is left to hash.

        Raises:
            BundleError: no such file, or its hash is not the manifest's.
        """
        path = self.path(relative)
        for name in (relative, *self.external_data.get(relative, ())):
            if name not in self._verified:
                _check_hash(self.folder, name, self.manifest.files[name])
                self._verified.add(name)
        return path


def open_bundle(folder: Path, *, expect_id: str | None = None, verify: Verify = "full") -> Bundle:
    """Open a bundle and check it.

    Args:
        folder: of the bundle; may itself be reached through a symbolic link.
        expect_id: the only bundle id to accept. Without it, a bundle that somebody forged with
            matching hashes is accepted.
        verify: `full` hashes every file (about a second per GiB). `deferred` leaves the contents of
            the files to `Bundle.verify_file`, which the engine calls before it uses a file, and
            still checks the manifest, names, sizes and the structure of every graph.

    Raises:
        BundleError: anything about the bundle is not as it should be; the text names the file.
        UsageError: `expect_id` is no bundle id, or `verify` none of its values.
    """
    if verify not in get_args(Verify):
        raise UsageError(f"verify={verify!r} is not one of {', '.join(get_args(Verify))}")
    try:
        if not (folder / MANIFEST_FILE).is_file():
            raise _no_bundle(folder)
    except OSError as error:
        raise unreadable(folder, error) from error
    sizes = scan_folder(folder)
    manifest, found_id = read_manifest(folder, expect_id)
    _check_paths(folder, manifest)
    _check_sizes(folder, manifest.files, sizes)
    _check_references(folder, manifest)
    verified: set[str] = set()
    if verify == "full":
        for name, entry in manifest.files.items():
            _check_hash(folder, name, entry)
            verified.add(name)
    try:
        check_contract(manifest)
    except BundleError as error:
        raise BundleError(f"{folder / MANIFEST_FILE}: {error}") from error
    external_data = {
        entry.file: check_graph(folder, entry, variant.opset, manifest.files, manifest.quantisation)
        for variant in manifest.variants.values()
        for entry in variant.graphs.values()
    }
    return Bundle(folder, manifest, found_id, external_data, verified)


def _no_bundle(folder: Path) -> BundleError:
    if not folder.exists():
        return BundleError(f"{folder}: no such folder; give the folder of a bundle")
    if not folder.is_dir():
        return BundleError(f"{folder}: not a folder; give the folder of a bundle")
    return BundleError(
        f"{folder}: no {MANIFEST_FILE} in this folder, so it is no bundle; give the folder that "
        "refsam-export wrote"
    )


def _check_paths(folder: Path, manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        problem = path_problem(name)
        if name in (MANIFEST_FILE, HASH_FILE):
            problem = "is the manifest's own"
        if problem:
            raise BundleError(
                f"{folder / MANIFEST_FILE}: lists {name!r}, a path that {problem}; this bundle was "
                "not written by refsam-export: do not use it"
            )
        if not is_digest(entry.sha256):
            raise BundleError(
                f"{folder / MANIFEST_FILE}: {name!r} has the SHA-256 {entry.sha256[:80]!r}, "
                "64 lower-case hexadecimal digits expected; export the bundle anew"
            )


def _check_sizes(folder: Path, files: Mapping[str, FileEntry], sizes: Mapping[str, int]) -> None:
    for name, entry in files.items():
        if name not in sizes:
            raise BundleError(f"{folder / name}: missing, but listed in the manifest; {COPY_AGAIN}")
        if sizes[name] != entry.size_bytes:
            raise BundleError(
                f"{folder / name}: {sizes[name]} bytes, the manifest says {entry.size_bytes}; "
                f"{COPY_AGAIN}"
            )
    if unlisted := sorted(sizes.keys() - files.keys() - {MANIFEST_FILE, HASH_FILE}):
        raise BundleError(
            f"{folder}: {unlisted[0]!r} is not listed in the manifest "
            f"({len(unlisted)} such files); a bundle is never changed: remove what was added"
        )


def _check_references(folder: Path, manifest: Manifest) -> None:
    named = {
        "tokenizer.file": manifest.tokenizer.file,
        "source": manifest.source,
        "text_cache": manifest.text_cache,
    }
    for variant_name, variant in manifest.variants.items():
        for graph, entry in variant.graphs.items():
            named[f"variants.{variant_name}.graphs.{graph}.file"] = entry.file
    for where, name in named.items():
        if name is not None and name not in manifest.files:
            raise BundleError(
                f"{folder / MANIFEST_FILE}: {where} is {name!r}, which is not among files; "
                "export the bundle anew"
            )


def _check_hash(folder: Path, name: str, entry: FileEntry) -> None:
    found = sha256_of_file(folder / name)
    if found != entry.sha256:
        raise BundleError(
            f"{folder / name}: SHA-256 {found}, the manifest says {entry.sha256}: the file was "
            f"damaged or changed; {COPY_AGAIN}"
        )
