"""Files of tensors: read without ever running what is inside them, and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from refsam_trt.bundle.folder import sha256_of_file
from refsam_trt.contract.manifest import Source
from refsam_trt.errors import CheckpointError, OutputError

_PICKLES = {".pth", ".pt", ".bin"}
# How PyTorch's restricted unpickler names a function or a class that it refuses to call.
_CODE = "GLOBAL"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a flat dictionary of tensors, memory-mapped where the format allows it.

    Args:
        path: `.safetensors`, or a PyTorch file (`.pth`, `.pt`, `.bin`), which is unpickled with
            `weights_only=True` only.

    Raises:
        CheckpointError: missing, truncated, of another format, or a pickle that holds anything but
            tensors.
    """
    _require_file(path)
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise _not_safetensors(path, error) from error
    if path.suffix not in _PICKLES:
        raise CheckpointError(
            f"{path}: unknown kind of weights file {path.suffix!r}; "
            f"expected .safetensors or one of {', '.join(sorted(_PICKLES))}"
        )
    return _flat(_unpickle(path), path)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata strings of a safetensors file, {} for other files.

    Raises:
        CheckpointError: missing or not readable.
    """
    _require_file(path)
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _not_safetensors(path, error) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file; other users may read it where they may read other new files.

    Raises:
        OutputError: it cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.torch.save_file(
            {key: value.detach().contiguous() for key, value in tensors.items()}, path, metadata
        )
    except SafetensorError as error:
        raise OutputError(f"{path}: cannot be written ({error}); free some space") from error
    path.chmod(mode)  # safetensors leaves its files to their owner alone


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        CheckpointError: missing, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable JSON file: {error}") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise CheckpointError(f"{path}: found JSON of a {kind}, expected an object")
    return content


def describe(role: str, path: Path) -> Source:
    """Return the manifest's record of a source file; one that stays as it is is read once."""
    status = path.stat()
    digest = _digest(path, status.st_size, status.st_mtime_ns, status.st_ino)
    return Source(role, path.name, status.st_size, digest)


@lru_cache(maxsize=256)
def _digest(path: Path, *unchanged: int) -> str:
    return sha256_of_file(path)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")


def _not_safetensors(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: truncated or not a safetensors file ({error}); fetch it again")


def _unpickle(path: Path) -> Any:
    is_zip = _is_zip(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # damaged bytes may end in any exception
        # PyTorch's own text advises to load the file without this protection.
        if _CODE in str(error):
            raise CheckpointError(
                f"{path}: refused, because the file holds more than tensors and loading it would "
                "run code; save it again as a state dictionary or convert it to .safetensors"
            ) from error
        raise CheckpointError(
            f"{path}: truncated, or not a dictionary of tensors written by torch.save; nothing of "
            "it was run; fetch it again"
        ) from error


def _is_zip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def _flat(loaded: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping) and isinstance(loaded.get("model"), Mapping):
        loaded = loaded["model"]
    if not isinstance(loaded, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()
    ):
        raise CheckpointError(
            f"{path}: expected a dictionary of tensors, found {type(loaded).__name__} with other "
            "content; save `model.state_dict()`"
        )
    return dict(loaded)
