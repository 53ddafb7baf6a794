"""From a checkpoint of a run to weights that can be shipped."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from refsam_bench.synthetic import vocabulary
from refsam_export.refsam.checkpoint import LoadedModel, canonical_tensors, save_source
from refsam_train.data.crowds import CROWD_SLICES
from refsam_train.learn.groups import AUXILIARY
from refsam_train.recipe import Recipe
from refsam_train.run.checkpoints import RunWeights, read_weights
from refsam_train.run.start import Sources, start_model
from refsam_trt.contract.manifest import Training, TrainingRun
from refsam_trt.errors import CheckpointError
from refsam_trt.files.atomic import atomic_path


@dataclass(frozen=True)
class Published:
    """What was written: steps done, recipe, number of tensors, the largest change by rounding."""

    step: int
    recipe_sha256: str
    num_tensors: int
    largest_change: float


def publish(recipe: Recipe, checkpoint: Path, sources: Sources, target: Path) -> Published:
    """Write the run's weights as our safetensors file in fp16, every value rounded to it.

    The moving average is taken where the run has one. Tensors that the run does not train come from
    where the run had them: `sources` and the recipe's seed. The file says how it was trained.

    Raises:
        CheckpointError: no checkpoint, of another model or recipe, or a value beyond the range of
            fp16.
    """
    weights = read_weights(checkpoint)
    trained = {k: v for k, v in weights.tensors.items() if not k.startswith(AUXILIARY)}
    loaded = start_model(recipe, sources)
    tensors = canonical_tensors(loaded.model)
    for name, value in trained.items():
        if name not in tensors or tensors[name].shape != value.shape:
            raise CheckpointError(
                f"{checkpoint}: {name} of shape {list(value.shape)} does not fit preset "
                f"{recipe.preset}; give the recipe of that run"
            )
    if recipe.digest() != weights.recipe_sha256:
        raise CheckpointError(
            f"{checkpoint}: trained with another recipe (sha256 {weights.recipe_sha256[:12]}) than "
            f"{recipe.name} as given (sha256 {recipe.digest()[:12]}); give the recipe of that run, "
            "or use the version of refsam-train that made it"
        )
    for name, value in trained.items():
        tensors[name].data.copy_(value)
    change = round_to_fp16(loaded)
    with atomic_path(target) as part:
        save_source(part, _with_training(loaded, recipe, weights, sources), as_fp16=True)
    return Published(weights.step, weights.recipe_sha256, len(tensors), change)


def _with_training(
    loaded: LoadedModel, recipe: Recipe, weights: RunWeights, sources: Sources
) -> LoadedModel:
    before = loaded.weights.training
    run = TrainingRun(recipe.name, weights.recipe_sha256, recipe.data.kind, weights.step)
    runs = (*(before.runs if before else ()), run)
    training = Training(runs, _words(recipe, sources, before))
    return dataclasses.replace(
        loaded, weights=msgspec.structs.replace(loaded.weights, training=training)
    )


def _words(recipe: Recipe, sources: Sources, before: Training | None) -> tuple[str, ...] | None:
    """Return every word trained on, None where the start or the data may know others."""
    is_fresh = sources.checkpoint is None and sources.text_encoder is None
    known = () if is_fresh else before.vocabulary if before else None
    if known is None or recipe.data.kind != "synthetic":
        return None
    slices: Any = (*recipe.data.slices, *(CROWD_SLICES if recipe.data.crowd_share else ()))
    return tuple(sorted({*known, *vocabulary(slices)}))


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
