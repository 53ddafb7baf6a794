"""The files of a sealed folder: which there are, whether a path stays inside, their hashes."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from refsam_trt import limits
from refsam_trt.errors import BundleError

MANIFEST_FILE = "manifest.json"
HASH_FILE = "manifest.sha256"

_PLAIN_PATH = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_DRIVE = re.compile(r"[A-Za-z]:")
_CHUNK_BYTES = 2**20


def path_problem(path: str) -> str | None:
    """Return why a path must not stand in a sealed folder, or None for a good one.

    A good path is relative, uses `/`, stays below where it starts, and means the same on every file
    system: parts of ASCII letters, digits, `.`, `_` and `-`, none of them `.` or `..`.
    """
    if path.startswith("/") or _DRIVE.match(path):
        return "is absolute"
    if "\\" in path:
        return "has a backslash"
    parts = path.split("/")
    if ".." in parts:
        return "leaves its folder"
    if len(path) > limits.MAX_PATH_CHARS:
        return f"is longer than {limits.MAX_PATH_CHARS} characters"
    if "." in parts or not _PLAIN_PATH.fullmatch(path):
        return "has parts that are not of ASCII letters, digits, '.', '_' and '-'"
    return None


def scan_folder(folder: Path, kind: str) -> dict[str, int]:
    """Return the size in bytes of every file below `folder`, by relative path with `/`.

    `kind` is what the folder is called in complaints.

    Raises:
        BundleError: something is neither a file nor a folder (a symbolic link above all), there are
            more than `limits.MAX_FILES` entries, or a folder cannot be read.
    """
    sizes: dict[str, int] = {}
    pending, num_entries = [""], 0
    while pending:
        below = pending.pop()
        for entry in _entries(folder / below):
            name = f"{below}{entry.name}"
            num_entries += 1
            if num_entries > limits.MAX_FILES:
                raise BundleError(
                    f"more than {limits.MAX_FILES} files and folders, more than a {kind} has; "
                    f"give the {kind}'s own folder",
                    folder,
                )
            if entry.is_dir(follow_symlinks=False):
                pending.append(f"{name}/")
            elif entry.is_file(follow_symlinks=False):
                sizes[name] = entry.stat(follow_symlinks=False).st_size
            else:
                thing = "a symbolic link" if entry.is_symlink() else "no regular file"
                raise BundleError(
                    f"{name!r} is {thing}; a {kind} holds files and folders only: copy the {kind} "
                    "with links resolved (cp -rL)",
                    folder,
                )
    return sizes


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, reading 1 MiB at a time.

    Raises:
        BundleError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


def unreadable(path: Path, error: OSError) -> BundleError:
    """Return the error that says that the system does not let us read `path`."""
    return BundleError(f"cannot be read ({error.strerror}); check path and permissions", path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise unreadable(folder, error) from error
