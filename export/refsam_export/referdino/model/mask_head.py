"""From memory and objects to masks: the pixel decoder and what its last convolution feeds (6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from refsam_export.key_bias import key_bias
from refsam_export.referdino.model.attention import DecoderLayer
from refsam_export.referdino.model.config import ModelConfig

_GROUPS = 8


class PixelDecoder(nn.Module):
    """Convolutions that bring the memory to stride 4; maps are channel first (6.1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        widths = (width, width, width // 2, width // 4, width // 8, width // 16)
        for index in range(1, 6):
            convolution = nn.Conv2d(widths[index - 1], widths[index], 3, padding=1)
            self.add_module(f"lay{index}", convolution)
            self.add_module(f"gn{index}", nn.GroupNorm(_GROUPS, widths[index]))
        self.adapter1 = nn.Conv2d(width, widths[2], 1)
        self.adapter2 = nn.Conv2d(width, widths[3], 1)
        self.adapter3 = nn.Conv2d(config.swin_width, widths[4], 1)
        self.out_lay = nn.Conv2d(widths[5], width, 3, padding=1)

    def forward(self, m8: Tensor, m16: Tensor, m32: Tensor, skip4: Tensor) -> Tensor:
        """Return x16 [B, d / 16, H4, W4], from which `out_lay` makes the mask map.

        Args:
            m8: memory of stride 8 [B, d, h, w].
            m16: of stride 16.
            m32: of stride 32.
            skip4: what `adapter3` makes of Swin's first stage, [B or 1, d / 8, H4, W4].
        """
        x = self._layer(1, m32)
        x = self._layer(2, x)
        x = self._layer(3, _added(self.adapter1(m16), x))
        x = self._layer(4, _added(self.adapter2(m8), x))
        return self._layer(5, _added(skip4, x))

    def _layer(self, index: int, x: Tensor) -> Tensor:
        norm, convolution = self.get_submodule(f"gn{index}"), self.get_submodule(f"lay{index}")
        return torch.relu(norm(convolution(x)))


def _added(fine: Tensor, coarse: Tensor) -> Tensor:
    """Add a coarse map to a fine one; a cell takes the value of the nearest above or left."""
    return fine + functional.interpolate(coarse, size=fine.shape[2:], mode="nearest")


class MaskBlocks(nn.ModuleList):
    """Decoder layers that look at the one mask map, without pruning or refinement (6.2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            DecoderLayer(config.width, config.num_heads, 1, config.mask_points, config.mask_ffn)
            for _ in range(config.mask_layers)
        )

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference: Tensor,
        text_mem: Tensor,
        token_mask: Tensor,
        mask_map: Tensor,
    ) -> Tensor:
        """Return mask embeddings [B, slots, d].

        Args:
            x: [B, slots, d].
            position: codes of the boxes [B, slots, d].
            reference: boxes [B, slots, 4], the same in all blocks.
            text_mem: [B, N, d].
            token_mask: bool [B or 1, N].
            mask_map: [B, d, H4, W4].
        """
        sizes = [(mask_map.shape[2], mask_map.shape[3])]
        value, bias = mask_map.flatten(2).mT, key_bias(token_mask, x.dtype)[:, None, None]
        for block in self:
            x, _ = block(x, position, reference, text_mem, bias, value, sizes)
        return x
