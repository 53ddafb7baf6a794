"""Writes a bundle: whole or not at all, never changed afterwards, the same for the same inputs."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from refsam_trt.bundle.folder import HASH_FILE, MANIFEST_FILE, path_problem
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.bundle.sealed import file_entry, write_seal
from refsam_trt.contract.manifest import Manifest
from refsam_trt.errors import BundleError, InternalError, OutputError
from refsam_trt.files.atomic import atomic_folder
from refsam_trt.files.target import refuse_folder


def write_bundle(
    target: Path, *, manifest: Manifest, files: Mapping[str, Path], overwrite: bool = False
) -> Bundle:
    """Write a bundle and open it.

    Nothing but the arguments enters the bundle (no time, no path, no user), so equal inputs give an
    equal bundle id. An interrupted or failed call leaves `target` as it was.

    Args:
        target: folder of the bundle; its parent must exist.
        manifest: everything but `files`, which is filled in here.
        files: path in the bundle -> file to take. The files are moved, or copied and removed where
            they lie on another file system: they are gone afterwards, after a failure too. Give
            copies of whatever must stay.
        overwrite: replace a bundle, or an empty folder, at `target`.

    Raises:
        OutputError: `target` exists or cannot be written, or a file cannot be moved.
        InternalError: the request breaks the rules of docs/format/bundle.md, so that `open_bundle`
            would refuse the result.
    """
    refuse_folder(target, overwrite=overwrite, marker=MANIFEST_FILE)
    _check_request(target, manifest, files)
    with atomic_folder(target, overwrite) as folder:
        for name, source in files.items():
            _move(source, folder / name)
        entries = {name: file_entry(folder / name) for name in files}
        write_seal(folder, msgspec.structs.replace(manifest, files=entries))
        bundle = _checked(folder, target)
    return dataclasses.replace(bundle, folder=target)


def _check_request(target: Path, manifest: Manifest, files: Mapping[str, Path]) -> None:
    for name, source in files.items():
        problem = path_problem(name)
        if name in (MANIFEST_FILE, HASH_FILE):
            problem = "is the manifest's own"
        if problem:
            raise InternalError(f"{target}: no file can be called {name!r}, a path that {problem}")
        if source.is_symlink() or not source.is_file():
            raise InternalError(f"{target}: {name!r} should come from {source}, which is no file")
    # JSON has no such numbers: they would silently become null.
    if not all(math.isfinite(number) for number in _floats(msgspec.to_builtins(manifest))):
        raise InternalError(f"{target}: the manifest holds a number that is not finite")


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _floats(item)


def _move(source: Path, destination: Path) -> None:
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, destination)
    except OSError as error:
        raise OutputError(
            f"{source}: cannot be moved into the bundle ({error.strerror}); check permissions and "
            "free space"
        ) from error


def _checked(folder: Path, target: Path) -> Bundle:
    try:
        # The contents were hashed a moment ago; what the graphs say is still to be compared.
        bundle = open_bundle(folder, verify="deferred")
        for name in bundle.manifest.variants:
            bundle.check_variant(name)
        return bundle
    except BundleError as error:
        raise InternalError(
            f"the bundle just made does not pass its own check: {error.moved(folder, target)}"
        ) from error
