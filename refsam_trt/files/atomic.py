"""Files and folders that are either whole or absent.

The new content is written to a hidden sibling of the target, flushed to disk and renamed. A sibling
is on the same file system, so the rename cannot fail half-way.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refsam_trt.errors import InternalError
from refsam_trt.files.target import output_errors, refuse_file, refuse_folder


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which becomes `target` when the block ends.

    The block creates and closes the file. An existing file at `target` is replaced; if the block
    raises anything, KeyboardInterrupt too, nothing is left and `target` is as it was. The yielded
    name does not keep the suffix: tell writers their format.

    Raises:
        OutputError: no space, no permission, no such folder, or something other than a file at
            `target`.
    """
    refuse_file(target)
    sibling = _sibling(target, "part")
    try:
        with output_errors(target, only_at=sibling):
            yield sibling
        _require_written(sibling, target)
        with output_errors(target):
            _flush_file(sibling)
            sibling.replace(target)
            _flush_folder(target.parent)
    finally:
        sibling.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path, overwrite: bool | None = None) -> Iterator[Path]:
    """Yield an empty folder to fill, which becomes `target` when the block ends.

    An existing target is refused unless `overwrite` (None: nobody can ask for it); then the old
    folder, whatever is in it, is moved away only after the new one is complete, and deleted last.
    If the block raises anything, KeyboardInterrupt too, nothing is left and `target` is as it was.

    Raises:
        OutputError: `target` exists (or, with `overwrite`, is not a plain folder), no space, no
            permission, or no such parent folder.
    """
    refuse_folder(target, overwrite=overwrite)
    sibling = _sibling(target, "part")
    try:
        with output_errors(target, only_at=sibling):
            sibling.mkdir()
            yield sibling
        with output_errors(target):
            _flush_tree(sibling)
            refuse_folder(target, overwrite=overwrite)
            _move_folder(sibling, target)
            _flush_folder(target.parent)
    finally:
        shutil.rmtree(sibling, ignore_errors=True)


def _sibling(target: Path, suffix: str) -> Path:
    """Return an unused hidden name beside `target`, short enough for any file system."""
    return target.parent / f".{target.name[:32]}.{secrets.token_hex(6)}.{suffix}"


def _require_written(sibling: Path, target: Path) -> None:
    if not sibling.is_file():
        raise InternalError(f"{target}: the block wrote no file at {sibling}")


def _move_folder(source: Path, target: Path) -> None:
    if not target.exists():
        source.rename(target)
        return
    old = _sibling(target, "old")
    target.rename(old)
    try:
        source.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir():
            _flush_folder(path)
        else:
            _flush_file(path)
    _flush_folder(folder)


def _flush_file(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows opens no folders and keeps its directory entries itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
