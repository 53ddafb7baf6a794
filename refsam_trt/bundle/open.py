"""Opens a bundle: nothing of it is used before it is known to be whole and what it claims to be.

Reads only, so bundles work from read-only file systems. Hashes find corruption; only `expect_id`
finds malice. What the bundle's files mean is told in docs/format/bundle.md.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from refsam_trt.bundle.folder import MANIFEST_FILE
from refsam_trt.bundle.graph_check import check_graph
from refsam_trt.bundle.sealed import Kind, check_expected, check_hash, check_is_id, open_sealed
from refsam_trt.contract.check import check_contract
from refsam_trt.contract.manifest import SCHEMA_VERSION, Manifest
from refsam_trt.errors import BundleError, UsageError

Verify = Literal["full", "deferred"]

_BUNDLE = Kind(
    Manifest,
    SCHEMA_VERSION,
    "bundle",
    writer="refsam-export",
    copy_again="copy the bundle again, or export it anew with refsam-export",
    make_anew="export the bundle anew",
)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was opened: immutable, and used from where it lies. May be shared by threads.

    Whoever asks for a graph's file gets it checked: `path` checks what the graph says of itself,
    `verify_file` its contents too. Nothing is checked twice.

    Attributes:
        folder: where it lies.
        manifest: everything known about it.
        bundle_id: SHA-256 of the canonical manifest, in hexadecimal.
    """

    folder: Path
    manifest: Manifest
    bundle_id: str
    _verified: set[str] = field(default_factory=set, repr=False, compare=False)
    _external_data: dict[str, tuple[str, ...]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def path(self, relative: str) -> Path:
        """Return where a file of the bundle lies.

        Raises:
            BundleError: the manifest lists no file of that name, or it is a graph and not as the
                manifest says.
        """
        self.external_data(relative)
        return self.folder / relative

    def external_data(self, relative: str) -> tuple[str, ...]:
        """Return the files that hold a graph's external data; none for what is no graph.

        All paths are relative to the bundle.

        Raises:
            BundleError: as `path`.
        """
        if relative not in self.manifest.files:
            raise BundleError(f"the manifest lists no file {relative!r}", self.folder)
        if relative not in self._external_data:
            self._external_data[relative] = self._check_graph(relative)
        return self._external_data[relative]

    def content_id(self, relative: str) -> str:
        """Return a hash of the contents of a file and of a graph's external data.

        Of contents as the manifest has them. Equal contents have equal hashes, whatever the names
        of the files and of the bundle.

        Raises:
            BundleError: as `path`.
        """
        names = (relative, *sorted(self.external_data(relative)))
        hashes = "".join(self.manifest.files[name].sha256 for name in names)
        return hashlib.sha256(hashes.encode()).hexdigest()

    def verify_file(self, relative: str) -> Path:
        """Check the contents of a file, and of a graph's external data, and return where it lies.

        To be called just before a file is used. Each file is hashed once per `Bundle`; after
        `open_bundle(..., verify="full")` none is left to hash.

        Raises:
            BundleError: as `path`, or a hash is not the manifest's.
        """
        path = self.path(relative)
        for name in (relative, *self.external_data(relative)):
            self._check_hash(name)
        return path

    def check_variant(self, name: str) -> None:
        """Check what the graphs of a variant say of themselves; their weights are not read.

        Raises:
            BundleError: one of them is not as the manifest says.
        """
        for entry in self.manifest.variants[name].graphs.values():
            self.path(entry.file)

    def verify(self) -> None:
        """Check all that is not checked yet: every file's contents, the graphs of all variants.

        Raises:
            BundleError: something is not as the manifest says.
        """
        with ThreadPoolExecutor() as threads:  # hashing leaves the other cores free
            list(threads.map(self._check_hash, self.manifest.files))
        for name in self.manifest.variants:
            self.check_variant(name)

    def check_is(self, expect_id: str | None) -> None:
        """Refuse another bundle than the one that is expected; None expects none.

        Raises:
            BundleError: it is another.
            UsageError: `expect_id` is no bundle id.
        """
        check_is_id(expect_id, _BUNDLE)
        check_expected(self.folder, self.bundle_id, expect_id, _BUNDLE)

    def _check_hash(self, name: str) -> None:
        if name not in self._verified:
            check_hash(self.folder, name, self.manifest.files[name], _BUNDLE)
            self._verified.add(name)

    def _check_graph(self, file: str) -> tuple[str, ...]:
        """Check a file against all graphs that it stands for; return its external data."""
        external_data: tuple[str, ...] = ()
        for variant in self.manifest.variants.values():
            for entry in variant.graphs.values():
                if entry.file == file:
                    self._check_hash(file)  # so that nothing is parsed but what was sealed
                    files, quantisation = self.manifest.files, self.manifest.quantisation
                    external_data = check_graph(
                        self.folder, entry, variant.opset, files, quantisation
                    )
        return external_data


def open_bundle(folder: Path, *, expect_id: str | None = None, verify: Verify = "full") -> Bundle:
    """Open a bundle and check it.

    Args:
        folder: of the bundle; may itself be reached through a symbolic link.
        expect_id: the only bundle id to accept. Without it, a bundle that somebody forged with
            matching hashes is accepted.
        verify: `full` hashes every file (about a second per GiB) and checks every graph. `deferred`
            checks the manifest and the names and sizes of all files, and leaves each file to
            `Bundle.path` and `Bundle.verify_file`, without which nobody uses one.

    Raises:
        BundleError: anything about the bundle is not as it should be; the text names the file.
        UsageError: `expect_id` is no bundle id, or `verify` none of its values.
    """
    if verify not in get_args(Verify):
        raise UsageError(f"verify={verify!r} is not one of {', '.join(get_args(Verify))}")
    manifest, bundle_id = open_sealed(folder, _BUNDLE, expect_id)
    _check_references(folder, manifest)
    try:
        check_contract(manifest)
    except BundleError as error:
        raise BundleError(error.problem, folder / MANIFEST_FILE) from error
    bundle = Bundle(folder, manifest, bundle_id)
    if verify == "full":
        bundle.verify()
    return bundle


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
                f"{where} is {name!r}, which is not among files; export the bundle anew",
                folder / MANIFEST_FILE,
            )
