"""One refusal of a place for output: the same before long work as just before the rename."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refsam_trt.errors import OutputError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def refuse_file(target: Path, *, overwrite: bool = True) -> None:
    """Refuse a place where no file can be put.

    Raises:
        OutputError: something else than a file is there, or a file and not `overwrite`, or there is
            no folder to put it in.
    """
    with output_errors(target):
        _refuse_parent(target)
        if target.exists() and not target.is_file():
            raise OutputError("found a folder or a device, expected a file or nothing", target)
        if target.exists() and not overwrite:
            raise _exists(target, overwrite)


def refuse_folder(
    target: Path, *, overwrite: bool | None = None, marker: str | None = None
) -> None:
    """Refuse a place where no new folder can be put.

    Args:
        target: the place.
        overwrite: whether a folder is replaced; None where nobody can ask for it.
        marker: name of a file that every folder of the kind has; a folder without it is somebody
            else's and is not replaced, unless it is empty.

    Raises:
        OutputError: a file or a link is there, or a folder that may not be replaced, or there is no
            folder to put it in.
    """
    with output_errors(target):
        _refuse_parent(target)
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise OutputError("found a file or a link, expected a folder or nothing", target)
        if not target.exists():
            return
        if not overwrite:
            raise _exists(target, overwrite)
        if marker and any(target.iterdir()) and not (target / marker).is_file():
            raise OutputError(
                f"holds no {marker}, so it is not overwritten; choose another name, or remove it "
                "yourself",
                target,
            )


def make_folder(folder: Path) -> None:
    """Make a folder and those it lies in, where they do not exist.

    Raises:
        OutputError: something is in the way, or no permission.
    """
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def output_errors(target: Path, only_at: Path | None = None) -> Iterator[None]:
    """Turn an OSError into OutputError; with `only_at` only a full disk or an error at that path.

    Others in the caller's block, such as an input that cannot be read, are not about the target.
    """
    try:
        yield
    except OSError as error:
        is_full = error.errno in _NO_ROOM
        if only_at and not is_full and not str(error.filename).startswith(str(only_at)):
            raise
        remedy = "free some space" if is_full else "choose another place"
        raise OutputError(f"cannot be written ({error.strerror}); {remedy}", target) from error


def _refuse_parent(target: Path) -> None:
    if not target.parent.is_dir():
        raise OutputError(f"the folder {target.parent} does not exist; create it first", target)


def _exists(target: Path, overwrite: bool | None) -> OutputError:
    remedy = "" if overwrite is None else ", or ask to replace it (--overwrite)"
    return OutputError(f"exists already; choose another name{remedy}", target)
