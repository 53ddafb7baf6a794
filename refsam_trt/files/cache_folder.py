"""Where a user's caches lie, by the custom of each system."""

from __future__ import annotations

from pathlib import Path

from refsam_trt.errors import UsageError


def user_cache_folder() -> Path:
    """Return this project's folder among the user's caches, which need not exist.

    Raises:
        UsageError: the account has no home folder.
    """
    import platformdirs  # most runs keep nothing

    try:
        folder = Path(platformdirs.user_cache_dir("refsam-trt", appauthor=False))
    except RuntimeError:  # 4.14 raises it for want of a home, where older versions keep the "~"
        folder = Path("~")
    if not folder.is_absolute():
        raise UsageError(
            "this account has no home folder, so no cache folder either; set XDG_CACHE_HOME to an "
            "absolute path, or name a folder"
        )
    return folder
