"""Where a user's caches lie, by the custom of each system. Environment variables are read here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from refsam_trt.errors import UsageError

_NAME = "refsam-trt"


def user_cache_folder() -> Path:
    """Return this project's folder among the user's caches, which need not exist.

    `$XDG_CACHE_HOME` where it holds an absolute path, on every system; else `~/.cache`, on macOS
    `~/Library/Caches`, on Windows `%LOCALAPPDATA%` or `~/AppData/Local`.

    Raises:
        UsageError: the account has no home folder.
    """
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if chosen.is_absolute():
        return chosen / _NAME
    if sys.platform == "win32":
        local = Path(os.environ.get("LOCALAPPDATA", ""))
        return (local if local.is_absolute() else _home() / "AppData" / "Local") / _NAME
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches" / _NAME
    return _home() / ".cache" / _NAME


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise UsageError(
            "this account has no home folder, so no cache folder either; set XDG_CACHE_HOME to a "
            "folder, or name one"
        ) from error
