"""Swin, the image backbone (3.1): windows of fixed size, also where a map is smaller than one.

Maps are channel last, [M, h, w, C].
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from refsam_export.referdino.model.config import ModelConfig

PATCH = 4
"""Side of a patch in pixels, which is the stride of the first stage."""
OTHER_REGION = -100.0
"""Added to the scores of cells that were no neighbours before a map was rolled."""


@functools.cache
def relative_index(window: int) -> NDArray[np.int64]:
    """Return the row of the bias table for query a and key b of a window, int64 [w*w, w*w]."""
    y, x = np.divmod(np.arange(window * window), window)
    rows, columns = y[:, None] - y, x[:, None] - x
    span = 2 * window - 1
    index: NDArray[np.int64] = (rows + window - 1) * span + columns + window - 1
    return index


def regions(size: int, window: int, shift: int) -> Tensor:
    """Return which of three regions each row (or column) of a rolled, padded map is of, [size]."""
    index = torch.arange(size)
    return (index >= size - window).long() + (index >= size - shift).long()


def shifted_bias(size: tuple[int, int], window: int, shift: int) -> Tensor:
    """Return what is added to scores of a rolled, padded map: 0 or -100, [windows, w*w, w*w]."""
    height, width = size
    region = 3 * regions(height, window, shift)[:, None] + regions(width, window, shift)
    region = to_windows(region[None, :, :, None], window)[..., 0]
    return OTHER_REGION * (region[:, :, None] != region[:, None]).float()


def to_windows(x: Tensor, window: int) -> Tensor:
    """Cut maps [M, h, w, C], whose sides are multiples of `window`, into [M * windows, w*w, C]."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return x.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def from_windows(x: Tensor, window: int, size: tuple[int, int]) -> Tensor:
    """Undo `to_windows` for maps of that (height, width)."""
    height, width = size
    x = x.unflatten(1, (window, window)).unflatten(0, (-1, height // window, width // window))
    return x.transpose(2, 3).flatten(1, 2).flatten(2, 3)


class WindowAttention(nn.Module):
    """Self-attention inside windows, with a learned bias for each relative position."""

    def __init__(self, width: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.scale = (width // num_heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        table = torch.zeros((2 * window - 1) ** 2, num_heads)
        self.relative_position_bias_table = nn.Parameter(table)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Attend within each window.

        Args:
            x: [M * windows, w*w, C].
            bias: added to the scores of each window of a map, [windows, w*w, w*w].

        Returns:
            [M * windows, w*w, C].
        """
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        table = self.relative_position_bias_table
        index = torch.from_numpy(relative_index(self.window)).to(table.device)
        relative = table[index].permute(2, 0, 1)
        scores = (q * self.scale) @ k.mT + relative
        if bias is not None:
            windows = scores.unflatten(0, (-1, bias.shape[0]))
            scores = (windows + bias[:, None]).flatten(0, 1)
        out: Tensor = self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Window attention and MLP, pre-norm; every second block rolls the map first."""

    def __init__(self, width: int, num_heads: int, window: int, *, is_shifted: bool) -> None:
        super().__init__()
        self.window, self.shift = window, window // 2 if is_shifted else 0
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, num_heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [M, h, w, C] to the same shape."""
        x = x + self._attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]

    def _attend(self, x: Tensor) -> Tensor:
        """Attend in windows; cells beyond the map are zero vectors, which take part as such."""
        window, shift, (height, width) = self.window, self.shift, x.shape[1:3]
        x = functional.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        padded_hw = (x.shape[1], x.shape[2])
        bias = None
        if shift:
            x = x.roll((-shift, -shift), dims=(1, 2))
            bias = shifted_bias(padded_hw, window, shift).to(x)
        x = from_windows(self.attn(to_windows(x, window), bias), window, padded_hw)
        if shift:
            x = x.roll((shift, shift), dims=(1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Four neighbours become one cell of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [M, h, w, C] to [M, ceil(h / 2), ceil(w / 2), 2 C]."""
        x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        phases = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        out: Tensor = self.reduction(self.norm(torch.cat(phases, dim=-1)))
        return out


class _Stage(nn.Module):
    def __init__(
        self, width: int, depth: int, num_heads: int, window: int, *, merges: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(width, num_heads, window, is_shifted=index % 2 == 1) for index in range(depth)
        )
        if merges:
            self.downsample = PatchMerging(width)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class _PatchEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        image = functional.pad(image, (0, -width % PATCH, 0, -height % PATCH))
        x: Tensor = self.norm(self.proj(image).permute(0, 2, 3, 1))
        return x


class Swin(nn.Module):
    """Official keys; `norm#` normalises what a stage gives, not what it hands on."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbedding(config.swin_width)
        sizes = zip(config.swin_channels, config.swin_depths, config.swin_heads, strict=True)
        last = len(config.swin_depths) - 1
        self.layers = nn.ModuleList(
            _Stage(*size, config.window, merges=index < last) for index, size in enumerate(sizes)
        )
        for index, channels in enumerate(config.swin_channels):
            self.add_module(f"norm{index}", nn.LayerNorm(channels))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Encode frames.

        Args:
            image: [M, 3, H, W], normalised RGB.

        Returns:
            The maps of strides 4, 8, 16 and 32, [M, h, w, C], each normalised.
        """
        x: Tensor = self.patch_embed(image)
        maps: list[Tensor] = []
        for index, stage in enumerate(self.layers):
            x = stage(x)
            maps.append(self.get_submodule(f"norm{index}")(x))
            if index < len(self.layers) - 1:
                x = stage.get_submodule("downsample")(x)
        return maps
