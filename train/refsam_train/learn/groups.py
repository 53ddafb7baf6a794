"""Which parameters are trained and at which rate (refsam-model 9.1)."""

from __future__ import annotations

from torch import nn

from refsam_export.refsam.model.itm import ITM_NAMES
from refsam_train.learn.forward import ClipTraining
from refsam_train.recipe import Group, Recipe
from refsam_trt.errors import UsageError

# Read by nobody when only the main mask is trained (refsam-model 6.6): they would get no gradient.
_UNUSED = (
    "mask_decoder.iou_prediction_head.",
    "mask_decoder.output_hypernetworks_mlps.1.",
    "mask_decoder.output_hypernetworks_mlps.2.",
    "mask_decoder.output_hypernetworks_mlps.3.",
)
AUXILIARY = "auxiliary."
"""Prefix of what is trained but no part of the model."""
_PREFIXES: tuple[tuple[str, Group], ...] = (
    ("resizer.", "resizer"),
    ("dense_conv", "hda"),
    ("fpn_conv.", "hda"),
    ("mask_decoder.", "decoder"),
    *((f"{name}.", "itm") for name in ITM_NAMES.values()),
)


def group_of(name: str) -> Group | None:
    """Return the group of the paper that a parameter belongs to, None for frozen ones."""
    if name.startswith("image_encoder."):
        return "adapters" if "_Adapter." in name else None
    return next((group for prefix, group in _PREFIXES if name.startswith(prefix)), None)


def trained_parameters(
    training: ClipTraining, recipe: Recipe
) -> dict[str, tuple[nn.Parameter, float]]:
    """Mark what the recipe trains and return it: name -> parameter and its learning rate.

    Names are those of the model; heads of auxiliary tasks follow with names of their own.
    Everything else is frozen.

    Raises:
        UsageError: `frozen` of the recipe names no tensor.
    """
    trained: dict[str, tuple[nn.Parameter, float]] = {}
    names = [name for name, _ in training.model.named_parameters()]
    if unknown := [x for x in recipe.frozen if not any(name.startswith(x) for name in names)]:
        raise UsageError(
            f"recipe {recipe.name}: frozen: no tensor begins with {', '.join(unknown)}"
        )
    for name, parameter in training.model.named_parameters():
        rate = _rate(name, recipe)
        parameter.requires_grad_(rate > 0.0)
        if rate > 0.0:
            trained[name] = (parameter, rate)
    rate = recipe.optimiser.learning_rate or max(recipe.optimiser.rates.values())
    for name in ("cell_heads", "match", "recall"):
        heads = getattr(training, name)
        if heads is not None:
            for inner, parameter in heads.named_parameters():
                trained[f"{AUXILIARY}{name}.{inner}"] = (parameter, rate)
    return trained


def _rate(name: str, recipe: Recipe) -> float:
    if name.startswith((*_UNUSED, *recipe.frozen)):
        return 0.0
    if recipe.mode == "full":
        return recipe.optimiser.learning_rate
    group = group_of(name)
    return recipe.optimiser.rates.get(group, 0.0) if group else 0.0
