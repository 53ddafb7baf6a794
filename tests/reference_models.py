"""Models with realistic weights for the export tests."""

from functools import cache

import torch

from refsam_export.checkpoint import LoadedModel, load_model
from refsam_export.model.refsam import RefSam


@cache
def loaded(preset: str, seed: int = 0) -> LoadedModel:
    """A model whose every tensor comes from `realistic_init`; shared, so never change it."""
    return load_model(preset, random_init=seed)


def model(preset: str, seed: int = 0) -> RefSam:
    return loaded(preset, seed).model


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute expected value."""
    return float((found - expected).abs().max() / expected.abs().max())
