"""Initial values that let the image encoder know places and look at neighbours.

SAM's relative-position tables start at zero, so at first attention cannot tell left from right;
with a pre-trained backbone that does not matter, but from nothing it takes thousands of steps until
shapes, which are arrangements of patches, can be learned at all. Each head is made to look one or
two patches in a direction of its own; training is free to change all of it.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from refsam_export.refsam.model.image_encoder import ImageEncoder

# About the size of what patches look like after some training.
_PLACE_SIZE: Final = 1.0
_CROSS: Final = ((-1, 0), (1, 0), (0, -1), (0, 1))
_DIAGONAL: Final = ((-1, -1), (-1, 1), (1, -1), (1, 1))
# Logits lost per patch away from the neighbour looked at, and where that ends.
_SLOPE: Final = 1.5
_FARTHEST: Final = 6
# The last blocks keep SAM's start: attention by content, over the whole image.
_FREE_BLOCKS: Final = 2


@torch.no_grad()
def look_at_neighbours(encoder: ImageEncoder) -> None:
    """Set query biases and relative-position tables of all blocks but the last two.

    A relative term is q . R[offset], q un-scaled (refsam-model 4.2). Head k has an own part of the
    head's width in which only its query bias is not zero, and in which the tables hold the wanted
    logits. Blocks in turn look at the four sides and the four corners; global ones twice as far.
    """
    for index, block in enumerate(list(encoder.blocks)[:-_FREE_BLOCKS]):
        attention: Any = block.attn
        reach = 1 if block.window_size > 0 else 2
        steps = (_CROSS, _DIAGONAL)[index // 2 % 2]
        _set_heads(attention, [(reach * down, reach * right) for down, right in steps])


@torch.no_grad()
def tell_places(pos_embed: Tensor) -> None:
    """Fill a position table [1, h, w, D] with sines and cosines of the row, then of the column.

    From noise, as ViTs usually begin, `nano` had not learned after 900 steps which object is on the
    left. The slowest wave changes by about one radian over the grid, so it tells the place itself.
    """
    _, rows, columns, width = pos_embed.shape
    slowness = torch.linspace(0.0, 1.0, width // 4)
    tables = [
        torch.arange(size, dtype=torch.float32)[:, None] * float(size) ** -slowness
        for size in (rows, columns)
    ]
    down, right = (_PLACE_SIZE * torch.cat([x.sin(), x.cos()], dim=1) for x in tables)
    pos_embed[0, ..., : width // 2] = down[:, None]
    pos_embed[0, ..., width // 2 :] = right[None, :]


def _set_heads(attention: Any, neighbours: list[tuple[int, int]]) -> None:
    heads, width = attention.num_heads, attention.rel_pos_h.shape[1]
    part = width // len(neighbours)
    bias = attention.qkv.bias[: heads * width].view(heads, width)
    bias.zero_()
    for number, (down, right) in enumerate(neighbours):
        own = slice(number * part, (number + 1) * part)
        bias[number :: len(neighbours), own] = 1.0
        attention.rel_pos_h[:, own] = _logits(attention.rel_pos_h, down) / part
        attention.rel_pos_w[:, own] = _logits(attention.rel_pos_w, right) / part


def _logits(table: Tensor, step: int) -> Tensor:
    """Return [rows, 1]: 0 for the key `step` away from the query, less for every other one."""
    rows = table.shape[0]
    # Row r belongs to query minus key = r - (rows - 1) / 2.
    away = torch.arange(rows, dtype=table.dtype) - (rows - 1) // 2 + step
    return -_SLOPE * away.abs().clamp(max=_FARTHEST)[:, None]
