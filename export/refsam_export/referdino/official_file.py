"""A checkpoint file of ReferDINO: read without running what is inside, or refused by its name.

The file is a pickle of a dictionary; `model_state_dict` in it is all that inference needs
(referdino-model 1.4).
"""

from __future__ import annotations

import collections
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refsam_export.files.tensor_files import read_metadata
from refsam_trt.errors import CheckpointError

STATE = "model_state_dict"
_MODULE = "module."
_OURS = "refsam"
_NUM_SHOWN = 4

_SCALAR: Any = np.float64(0).__reduce__()[0]  # its module differs between numpy 1 and 2
ALLOWED: tuple[Any, ...] = (
    collections.Counter,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64", "bool")),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
)
"""What a pickle may name beside tensors: counts of a scheduler, and numpy's scalars. Building them
runs no code of the file."""


def read_official(path: Path) -> dict[str, Tensor]:
    """Read the state dictionary of an official checkpoint, as it is in the file.

    Raises:
        CheckpointError: missing, damaged, of another model, or a pickle that holds anything but
            tensors, plain data and what `ALLOWED` names.
    """
    if not path.is_file():
        raise CheckpointError("no such file", path)
    if path.suffix == ".safetensors":
        raise CheckpointError(_safetensors_problem(path), path)
    loaded = _unpickle(path)
    state = loaded.get(STATE) if isinstance(loaded, Mapping) else None
    if not _is_state(state):
        raise CheckpointError(_other_problem(loaded), path)
    assert isinstance(state, Mapping)
    refuse_other_models(state, path)
    return dict(state)


def refuse_other_models(state: Mapping[str, Any], path: Path) -> None:
    """Refuse the weights of another model.

    Raises:
        CheckpointError: with what they are.
    """
    problem = _model_problem({key.removeprefix(_MODULE) for key in state})
    if problem is not None:
        raise CheckpointError(problem, path)


def _safetensors_problem(path: Path) -> str:
    if _OURS in read_metadata(path):
        return (
            "a weights file of RefSAM, not of ReferDINO; export it with --family refsam, or give a "
            ".pth file of ReferDINO"
        )
    return "a safetensors file; ReferDINO's checkpoints are .pth files, such as ryt_swinb.pth"


def _unpickle(path: Path) -> Any:
    with torch.serialization.safe_globals(list(ALLOWED)):
        try:
            is_zip = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except Exception as error:  # damaged bytes may end in any exception
            # PyTorch's own text advises to load the file without this protection.
            if "GLOBAL" in str(error):
                raise CheckpointError(
                    f"refused, because the file names {_names(path)} and loading that would run "
                    "code; load it where you trust it and save its model_state_dict again: "
                    '`torch.save({"model_state_dict": state}, path)`',
                    path,
                ) from error
            raise CheckpointError(
                "truncated, or not written by torch.save; nothing of it was run; fetch it again",
                path,
            ) from error


def _names(path: Path) -> str:
    """Return what the pickle names and may not."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # files of the old format cannot be searched
        names = []
    return ", ".join(names) or "functions or classes of its own"


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items()
    )


def _other_problem(loaded: Any) -> str:
    """Say what a file without `model_state_dict` is."""
    if not isinstance(loaded, Mapping):
        return f"found a {type(loaded).__name__}, expected a dictionary with {STATE!r}"
    inner = loaded.get("model", loaded)
    names = (
        {str(key).removeprefix(_MODULE) for key in inner} if isinstance(inner, Mapping) else set()
    )
    if problem := _model_problem(names):
        return problem
    if _has(names, "pixel_decoder."):
        return (
            f"ReferDINO's weights without the dictionary around them; save them again as "
            f'`torch.save({{"{STATE}": state}}, path)`'
        )
    shown = ", ".join(sorted(map(str, loaded))[:_NUM_SHOWN]) or "nothing"
    return (
        f"not a checkpoint of ReferDINO: expected tensors by name in {STATE!r}, found {shown}; "
        "give a file such as ryt_swinb.pth"
    )


def _model_problem(names: set[str]) -> str | None:
    """Return what tensors of another model are, None for ReferDINO's or unknown ones."""
    if _has(names, "transformer.decoder.") and not _has(names, "pixel_decoder."):
        return (
            "weights of GroundingDINO, which ReferDINO began from: they have no masks; give a "
            "checkpoint of ReferDINO, such as ryt_swinb.pth"
        )
    if _has(names, "prompt_encoder.") or _has(names, "image_encoder."):
        return (
            "weights of SAM; they belong to --sam-checkpoint with --family refsam. Give a "
            "checkpoint of ReferDINO, such as ryt_swinb.pth"
        )
    if _has(names, "bert.") and not _has(names, "transformer."):
        return (
            "weights of BERT; ReferDINO has BERT's in its own checkpoint. Give one such as "
            "ryt_swinb.pth"
        )
    return None


def _has(names: set[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)
