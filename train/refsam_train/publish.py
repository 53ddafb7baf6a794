"""From a checkpoint of a run to weights that can be shipped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from refsam_export.checkpoint import LoadedModel, canonical_tensors, save_source
from refsam_train.checkpoints import read_weights
from refsam_train.groups import AUXILIARY
from refsam_train.recipe import Recipe
from refsam_train.start import Sources, start_model
from refsam_trt.atomic import atomic_path
from refsam_trt.errors import CheckpointError


@dataclass(frozen=True)
class Published:
    """What was written: steps done, number of tensors, the largest change by rounding."""

    step: int
    num_tensors: int
    largest_change: float


def publish(recipe: Recipe, checkpoint: Path, sources: Sources, target: Path) -> Published:
    """Write the run's weights as our safetensors file, every value one that fp16 can hold.

    The moving average is taken where the run has one. Tensors that the run does not train come from
    where the run had them: `sources` and the recipe's seed.

    Raises:
        CheckpointError: no checkpoint, of another model, or a value beyond the range of fp16.
    """
    step, weights = read_weights(checkpoint)
    trained = {k: v for k, v in weights.items() if not k.startswith(AUXILIARY)}
    loaded = start_model(recipe, sources)
    tensors = canonical_tensors(loaded.model)
    for name, value in trained.items():
        if name not in tensors or tensors[name].shape != value.shape:
            raise CheckpointError(
                f"{checkpoint}: {name} of shape {list(value.shape)} does not fit preset "
                f"{recipe.preset}; give the recipe of that run"
            )
    for name, value in trained.items():
        tensors[name].data.copy_(value)
    change = round_to_fp16(loaded)
    with atomic_path(target) as part:
        save_source(part, loaded)
    return Published(step, len(tensors), change)


@torch.no_grad()
def round_to_fp16(loaded: LoadedModel) -> float:
    """Round every weight to the nearest that fp16 can hold and return the largest change.

    Raises:
        CheckpointError: a value is not finite or beyond 65504.
    """
    largest = 0.0
    for name, tensor in canonical_tensors(loaded.model).items():
        rounded = tensor.half().to(tensor.dtype)
        if not bool(torch.isfinite(rounded).all()):
            raise CheckpointError(
                f"{name}: holds a value that fp16 cannot; train with weight decay"
            )
        if tensor.numel():
            largest = max(largest, float((rounded - tensor).abs().max()))
        tensor.data.copy_(rounded)
    return largest
