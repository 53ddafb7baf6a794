"""Write a file in one step: it is there complete, or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refsam_trt.errors import OutputError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` and rename it to `path` if the block ends well.

    Folders that are missing are made. Nothing is left behind if the block raises.

    Raises:
        OutputError: the file cannot be written there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error}); check space and permissions, "
            "and that no folder has this name"
        ) from error
