"""Reading files of tensors without ever running what is inside them."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from refsam_trt.errors import CheckpointError
from refsam_trt.manifest import Source

_PICKLES = {".pth", ".pt", ".bin"}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a flat dictionary of tensors, memory-mapped where the format allows it.

    Args:
        path: `.safetensors`, or a PyTorch file (`.pth`, `.pt`, `.bin`), which is unpickled with
            `weights_only=True` only.

    Raises:
        CheckpointError: missing, truncated, of another format, or a pickle that holds anything but
            tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    if path.suffix not in _PICKLES:
        raise CheckpointError(
            f"{path}: unknown kind of weights file {path.suffix!r}; "
            f"expected .safetensors or one of {', '.join(sorted(_PICKLES))}"
        )
    return _flat(_unpickle(path), path)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata strings of a safetensors file, {} for other files."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointError: missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable JSON file: {error}") from error


def describe(role: str, path: Path) -> Source:
    """Return the manifest's record of a source file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return Source(role, path.name, path.stat().st_size, digest.hexdigest())


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, because the file holds more than tensors and loading it would run "
            "code; save it again as a state dictionary or convert it to .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: truncated or not a PyTorch file: {error}") from error


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


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
