"""Places and boxes as numbers: sine codes, grids of cells, the inverse sigmoid (4, 4.2, 4.4).

Boxes are (cx, cy, w, h), relative to the frame. All of it is computed in the dtype of the features.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

LevelSizes: TypeAlias = Sequence[tuple[int, int]]
"""(height, width) of each map, in the order of the strides; ints or symbols of an export."""

IMAGE_TEMPERATURE = 20.0
TEXT_TEMPERATURE = BOX_TEMPERATURE = 10000.0
EDGE = 0.01
"""A proposal is valid where all four of its numbers lie this far inside (0, 1)."""
INVALID_LOGIT = 1e4
"""Of an invalid proposal's box: its sigmoid is 1. Finite, so that nothing can become NaN."""
FIRST_SIDE = 0.05
"""Side of the proposals of stride 8; each level doubles it."""
SIGMOID_EPS = 1e-3
"""Lower bound inside the inverse sigmoid: 1e-3 in ReferDINO, 1e-5 in other DINO models."""


def sine(position: Tensor, num: int, temperature: float) -> Tensor:
    """Return the sine code [..., num] of numbers [...]: sine and cosine in turn (4)."""
    pair = torch.arange(num // 2, dtype=position.dtype, device=position.device)
    angle = 2 * math.pi * position[..., None] / temperature ** (2 * pair / num)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Return the logit of numbers in [0, 1], bounded near both ends."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=SIGMOID_EPS) / (1 - x).clamp(min=SIGMOID_EPS))


def box_code(boxes: Tensor, width: int) -> Tensor:
    """Return the sine codes [..., 2 * width] of boxes [..., 4], in the order y, x, w, h (4.6)."""
    codes = sine(boxes, width // 2, BOX_TEMPERATURE)  # [..., 4, width / 2]
    x, y, w, h = codes.unbind(-2)
    return torch.cat((y, x, w, h), dim=-1)


def cells(size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and column of every cell of a map, row-major, each [h * w] of `like`'s dtype."""
    height, width = size
    rows = torch.arange(height, dtype=like.dtype, device=like.device)
    columns = torch.arange(width, dtype=like.dtype, device=like.device)
    row, column = rows[:, None].expand(height, width), columns.expand(height, width)
    return row.reshape(-1), column.reshape(-1)


def cell_centres(sizes: LevelSizes, like: Tensor) -> Tensor:
    """Return the centre (x, y) of every cell of all levels, [S, 2], in its own level's map."""
    centres = []
    for height, width in sizes:
        row, column = cells((height, width), like)
        centres.append(torch.stack(((column + 0.5) / width, (row + 0.5) / height), dim=-1))
    return torch.cat(centres)


def image_positions(sizes: LevelSizes, level_embed: Tensor) -> Tensor:
    """Return the position of every cell of all levels [S, d]: y, then x, plus the level's (4.2).

    Args:
        sizes: of the levels.
        level_embed: [levels, d].
    """
    half = level_embed.shape[1] // 2
    positions = []
    for (height, width), level in zip(sizes, level_embed.unbind(0), strict=True):
        row, column = cells((height, width), level_embed)
        y = sine((row + 1) / (height + 1e-6), half, IMAGE_TEMPERATURE)
        x = sine((column + 1) / (width + 1e-6), half, IMAGE_TEMPERATURE)
        positions.append(torch.cat((y, x), dim=-1) + level)
    return torch.cat(positions)


def proposals(sizes: LevelSizes, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the box logits [S, 4] of every cell's proposal, and which are valid [S, 1] (4.4)."""
    sides = torch.cat(
        [
            torch.full_like(cells(size, like)[0], FIRST_SIDE * 2**level)
            for level, size in enumerate(sizes)
        ]
    )
    boxes = torch.cat((cell_centres(sizes, like), sides[:, None], sides[:, None]), dim=-1)
    valid = ((boxes > EDGE) & (boxes < 1 - EDGE)).all(dim=-1, keepdim=True)
    logits = torch.log(boxes / (1 - boxes))
    return torch.where(valid, logits, torch.full_like(logits, INVALID_LOGIT)), valid


class Mlp(nn.Module):
    """Linear layers `layers.#` with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., first width] to [..., last width]."""
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out
