"""A folder sealed by hashes, a bundle or plans: opened, its manifest checked, its files compared.

Every way in which such a folder can be wrong has its own text. What a manifest means is not asked
here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from refsam_trt import limits
from refsam_trt.bundle.folder import (
    HASH_FILE,
    MANIFEST_FILE,
    path_problem,
    scan_folder,
    sha256_of_file,
    unreadable,
)
from refsam_trt.contract.manifest import FileEntry
from refsam_trt.errors import BundleError, UsageError

_HEX_DIGEST = re.compile("[0-9a-f]{64}")


class SealedManifest(Protocol):
    """What the manifests of all sealed folders have."""

    @property
    def schema_version(self) -> int:
        """Version of the manifest's own form."""

    @property
    def files(self) -> Mapping[str, FileEntry]:
        """Every other file but that of the hash, by relative path."""

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, whose SHA-256 is the folder's id."""


M = TypeVar("M", bound=SealedManifest)


@dataclass(frozen=True)
class Kind(Generic[M]):
    """One kind of sealed folder.

    Attributes:
        manifest: class of its manifest.
        schema_version: the only one that is read.
        name: one such folder, in complaints.
        writer: the command that writes them.
        copy_again: what to do about a damaged one.
        make_anew: what to do about one that says something wrong.
    """

    manifest: type[M]
    schema_version: int
    name: str
    writer: str
    copy_again: str
    make_anew: str


class _Header(msgspec.Struct):
    schema_version: int


def open_sealed(folder: Path, kind: Kind[M], expect_id: str | None = None) -> tuple[M, str]:
    """Open a sealed folder; all is checked but the hashes of the files in it (`check_hash`).

    Args:
        folder: may itself be reached through a symbolic link.
        kind: of the folder.
        expect_id: the only id to accept, None for any.

    Returns:
        Manifest and id.

    Raises:
        BundleError: anything is wrong with the folder; its `path` tells where.
        UsageError: `expect_id` is no id.
    """
    check_is_id(expect_id, kind)
    try:
        if not (folder / MANIFEST_FILE).is_file():
            raise _no_such(folder, kind)
        sizes = scan_folder(folder, kind.name)
        raw = _read_bounded(folder / MANIFEST_FILE, limits.MAX_MANIFEST_BYTES, kind)
    except OSError as error:
        raise unreadable(folder, error) from error
    folder_id = hashlib.sha256(raw).hexdigest()
    _check_written_id(folder / HASH_FILE, folder_id, kind)
    check_expected(folder, folder_id, expect_id, kind)
    manifest = _decode(folder / MANIFEST_FILE, raw, kind)
    _check_entries(folder, manifest.files, kind)
    _check_sizes(folder, manifest.files, sizes, kind)
    return manifest, folder_id


def check_is_id(expect_id: str | None, kind: Kind[Any]) -> None:
    """Refuse what can be no id.

    Raises:
        UsageError: it is not a SHA-256 as we write it.
    """
    if expect_id is not None and not _HEX_DIGEST.fullmatch(expect_id):
        raise UsageError(
            f"expect_id {expect_id!r} is no {kind.name} id: 64 lower-case hexadecimal digits "
            f"expected, as in the {kind.name}'s {HASH_FILE}"
        )


def check_expected(folder: Path, folder_id: str, expect_id: str | None, kind: Kind[Any]) -> None:
    """Refuse another folder than the one that is expected, None being any."""
    if expect_id not in (None, folder_id):
        raise BundleError(
            f"this is {kind.name} {folder_id}, expected was {expect_id}; give the right "
            f"{kind.name}, or do not expect a certain one",
            folder,
        )


def check_hash(folder: Path, name: str, entry: FileEntry, kind: Kind[Any]) -> None:
    """Compare the contents of a file with its entry."""
    digest = sha256_of_file(folder / name)
    if digest != entry.sha256:
        raise BundleError(
            f"SHA-256 {digest}, the manifest says {entry.sha256}: the file was damaged or "
            f"changed; {kind.copy_again}",
            folder / name,
        )


def write_seal(folder: Path, manifest: SealedManifest) -> None:
    """Write manifest and id; the files that it lists are there already."""
    raw = manifest.to_bytes()
    (folder / MANIFEST_FILE).write_bytes(raw)
    (folder / HASH_FILE).write_bytes(f"{hashlib.sha256(raw).hexdigest()}\n".encode())


def file_entry(path: Path) -> FileEntry:
    """Return the manifest's entry of a file."""
    return FileEntry(size_bytes=path.stat().st_size, sha256=sha256_of_file(path))


def _no_such(folder: Path, kind: Kind[Any]) -> BundleError:
    if not folder.exists():
        return BundleError(f"no such folder; give the folder of a {kind.name}", folder)
    if not folder.is_dir():
        return BundleError(f"not a folder; give the folder of a {kind.name}", folder)
    return BundleError(
        f"no {MANIFEST_FILE} in this folder, so it is no {kind.name}; give the folder that "
        f"{kind.writer} wrote",
        folder,
    )


def _read_bounded(path: Path, max_bytes: int, kind: Kind[Any]) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise BundleError(f"missing; {kind.copy_again}", path) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if len(raw) > max_bytes:
        raise BundleError(f"more than {max_bytes} bytes; {kind.copy_again}", path)
    return raw


def _check_written_id(path: Path, folder_id: str, kind: Kind[Any]) -> None:
    text = _read_bounded(path, 4096, kind).decode("ascii", "replace")
    written_id = text.removesuffix("\n")
    if not _HEX_DIGEST.fullmatch(written_id):
        raise BundleError(
            f"holds {text[:80]!r}, 64 lower-case hexadecimal digits expected; {kind.copy_again}",
            path,
        )
    if written_id != folder_id:
        raise BundleError(
            f"the SHA-256 of {MANIFEST_FILE} is {folder_id}, written down is {written_id}: "
            f"one of the two files was altered; {kind.copy_again}",
            path,
        )


def _decode(path: Path, raw: bytes, kind: Kind[M]) -> M:
    try:
        version = msgspec.json.decode(raw, type=_Header).schema_version
        if version != kind.schema_version:
            raise _other_schema(path, version, kind)
        manifest = msgspec.json.decode(raw, type=kind.manifest)
        is_too_deep = _is_deeper(msgspec.json.decode(raw), limits.MAX_JSON_DEPTH)
    except (msgspec.ValidationError, UsageError) as error:
        raise BundleError(
            f"not a manifest of schema {kind.schema_version}: {error}; {kind.make_anew}", path
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"not JSON ({error}); {kind.copy_again}", path) from error
    except RecursionError:
        is_too_deep = True
    if is_too_deep:
        raise BundleError(
            f"values nested more than {limits.MAX_JSON_DEPTH} deep; {kind.make_anew}", path
        )
    if manifest.to_bytes() != raw:
        raise BundleError(
            f"not in canonical form (see docs/format/bundle.md): the {kind.name} id would depend "
            f"on how it is written; {kind.make_anew}",
            path,
        )
    return manifest


def _other_schema(path: Path, version: int, kind: Kind[Any]) -> BundleError:
    if version > kind.schema_version:
        problem, remedy = "made by a newer refsam_trt", "update refsam_trt"
    else:
        problem, remedy = "made by an older refsam_trt", kind.make_anew
    return BundleError(
        f"schema version {version}, {kind.schema_version} expected: {problem}; {remedy}", path
    )


def _is_deeper(value: Any, num_levels: int) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return False
    return num_levels == 0 or any(_is_deeper(item, num_levels - 1) for item in value)


def _check_entries(folder: Path, files: Mapping[str, FileEntry], kind: Kind[Any]) -> None:
    for name, entry in files.items():
        problem = path_problem(name)
        if name in (MANIFEST_FILE, HASH_FILE):
            problem = "is the manifest's own"
        if problem:
            raise BundleError(
                f"lists {name!r}, a path that {problem}; this {kind.name} was not written by "
                f"{kind.writer}: do not use it",
                folder / MANIFEST_FILE,
            )
        if not _HEX_DIGEST.fullmatch(entry.sha256):
            raise BundleError(
                f"{name!r} has the SHA-256 {entry.sha256[:80]!r}, 64 lower-case hexadecimal "
                f"digits expected; {kind.make_anew}",
                folder / MANIFEST_FILE,
            )


def _check_sizes(
    folder: Path, files: Mapping[str, FileEntry], sizes: Mapping[str, int], kind: Kind[Any]
) -> None:
    for name, entry in files.items():
        if name not in sizes:
            raise BundleError(
                f"missing, but listed in the manifest; {kind.copy_again}", folder / name
            )
        if sizes[name] != entry.size_bytes:
            raise BundleError(
                f"{sizes[name]} bytes, the manifest says {entry.size_bytes}; {kind.copy_again}",
                folder / name,
            )
    if unlisted := sorted(sizes.keys() - files.keys() - {MANIFEST_FILE, HASH_FILE}):
        raise BundleError(
            f"{unlisted[0]!r} is not listed in the manifest ({len(unlisted)} such files); a "
            f"{kind.name} is never changed: remove what was added",
            folder,
        )
