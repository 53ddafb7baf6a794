"""Checkpoints of a run: everything that the next step depends on, in one safetensors file.

Data and random numbers need no place in it but the step: both are functions of seed and step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from refsam_export.files.tensor_files import read_metadata, read_tensors
from refsam_trt.errors import CheckpointError
from refsam_trt.files.atomic import atomic_path

_METADATA_KEY = "refsam_train"
_SCHEMA = 1
_MODEL, _AVERAGE, _OPTIMISER = "model.", "average.", "optimiser."
# Names of AdamW's state in PyTorch; a matrix of Muon has the first alone.
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class RunState:
    """What a run consists of; the tensors are the live ones, nothing is copied.

    parameters: the trained ones by name; only they change. average: their moving average, {} for
    none.
    """

    parameters: Mapping[str, nn.Parameter]
    average: Mapping[str, Tensor]
    optimiser: torch.optim.Optimizer


def save_checkpoint(path: Path, state: RunState, *, step: int, digest: str) -> None:
    """Write the run after `step` steps: whole or not at all, also when the machine goes down."""
    tensors = {_MODEL + name: value.detach() for name, value in state.parameters.items()}
    tensors |= {_AVERAGE + name: value for name, value in state.average.items()}
    for name, parameter in state.parameters.items():
        moments = state.optimiser.state.get(parameter, {})
        tensors |= {f"{_OPTIMISER}{name}.{key}": moments[key] for key in _MOMENTS if key in moments}
    record = json.dumps({"schema": _SCHEMA, "step": step, "recipe": digest}, sort_keys=True)
    with atomic_path(path) as part:
        safetensors.torch.save_file(tensors, part, {_METADATA_KEY: record})


def load_checkpoint(path: Path, state: RunState, *, digest: str) -> int:
    """Bring a run to where a checkpoint was written and return the number of steps done.

    Raises:
        CheckpointError: unreadable, no checkpoint of a run, of another recipe or other parameters.
    """
    record = _record(path)
    if record["recipe"] != digest:
        raise CheckpointError(
            f"{path}: written by another recipe (sha256 {str(record['recipe'])[:12]}, this one has "
            f"{digest[:12]}); resume with the recipe of that run, or start a new run from its "
            "weights: refsam-train publish, then --weights"
        )
    tensors = read_tensors(path)
    _check_names(path, tensors, state)
    with torch.no_grad():
        for name, parameter in state.parameters.items():
            parameter.copy_(tensors[_MODEL + name])
            moments = {
                key: tensors[place].to(parameter.device)
                for key in _MOMENTS
                if (place := f"{_OPTIMISER}{name}.{key}") in tensors
            }
            if moments:
                state.optimiser.state[parameter] = moments
        for name, value in state.average.items():
            value.copy_(tensors[_AVERAGE + name])
    return int(record["step"])


@dataclass(frozen=True)
class RunWeights:
    """The weights of a run, after how many steps, and the digest of its recipe."""

    step: int
    recipe_sha256: str
    tensors: dict[str, Tensor]


def read_weights(path: Path) -> RunWeights:
    """Return the weights to publish: the average where there is one.

    Raises:
        CheckpointError: unreadable or no checkpoint of a run.
    """
    record, tensors = _record(path), read_tensors(path)
    prefix = _AVERAGE if any(key.startswith(_AVERAGE) for key in tensors) else _MODEL
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return RunWeights(int(record["step"]), str(record["recipe"]), weights)


def _record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint here; run without --resume to start one")
    raw = read_metadata(path).get(_METADATA_KEY)
    record = json.loads(raw) if raw is not None else {}
    if record.get("schema") != _SCHEMA:
        raise CheckpointError(
            f"{path}: no checkpoint of a training run of this version; give one that refsam-train "
            "wrote (a bundle's source or a SAM file goes to --weights or --sam-checkpoint)"
        )
    return dict(record)


def _check_names(path: Path, tensors: Mapping[str, Tensor], state: RunState) -> None:
    names = {key.removeprefix(_MODEL) for key in tensors if key.startswith(_MODEL)}
    if names != set(state.parameters):
        differing = sorted(names ^ set(state.parameters))
        raise CheckpointError(
            f"{path}: trains other parameters than this run, {len(differing)} differ: "
            f"{', '.join(differing[:4])}; start anew without --resume"
        )
