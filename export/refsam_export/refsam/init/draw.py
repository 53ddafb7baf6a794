"""The random numbers of `realistic_init`: one generator per tensor, the same bits everywhere."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from refsam_export.refsam.model.config import ModelConfig


def seeded(seed: int, name: str) -> torch.Generator:
    """Return the CPU generator of one name: it depends on the seed and the name alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


@dataclass(frozen=True)
class Draw:
    """One tensor about to be filled.

    `index` is the number in its key (block, layer, HDA level), 0 without one. `text_head_dim` is
    the width of a head of T5, 0 with another text encoder or none.
    """

    config: ModelConfig
    seed: int
    shape: tuple[int, ...]
    index: int
    text_head_dim: int
    generator: torch.Generator

    def noise(self, *shape: int) -> Tensor:
        """Return float32 noise of mean 0 and variance 1, of the tensor's shape unless told.

        A sum of four uniforms, not `randn`: the logarithms and cosines inside that one differ in
        the last bit between processors.
        """
        size = shape or self.shape
        first, second, third, fourth = (torch.rand(size, generator=self.generator) for _ in "1234")
        return (first + second + third + fourth - 2) * math.sqrt(3)

    def linear(self, gain: float) -> Tensor:
        """Return a weight [out, in, ...] that maps inputs of size 1 to outputs of size `gain`."""
        return self.noise() * (gain / math.sqrt(math.prod(self.shape[1:])))


Rule: TypeAlias = Callable[[Draw], Tensor]
"""How the tensors of some keys are filled: returns float32 of the draw's shape."""


def centre(weight: Tensor, dim: int) -> Tensor:
    """Remove the mean along `dim`, in double precision so that no order of summation shows."""
    return (weight.double() - weight.double().mean(dim=dim, keepdim=True)).float()


def noise(std: float, mean: float = 0.0) -> Rule:
    """Return the rule for noise of this mean and standard deviation."""
    return lambda draw: mean + std * draw.noise()


def linear(gain: float) -> Rule:
    """Return the rule of `Draw.linear`."""
    return lambda draw: draw.linear(gain)


def after_activation(gain: float) -> Rule:
    """Like `linear`, for inputs that are never negative: their common mean maps to zero.

    Else that mean would pile up block after block until all tokens looked alike.
    """
    return lambda draw: centre(draw.linear(gain), dim=1)
