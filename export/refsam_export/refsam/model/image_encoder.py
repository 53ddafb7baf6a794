"""SAM's ViT with RefSAM's adapters and intermediate maps (refsam-model section 4).

Leaves out the normalisation of the neck's output and the HDA reductions: those are `RefSam`'s.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from refsam_export.refsam.model.config import EMBED_DIM, ModelConfig
from refsam_export.refsam.model.sam import (
    Block,
    ImageEncoderViT,
    window_partition,
    window_unpartition,
)

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


class Adapter(nn.Module):
    """Bottleneck `x -> D_fc2(act(D_fc1(x)))` (paper III-C1); skips and scale are the block's."""

    def __init__(self, width: int, hidden: int, act: str) -> None:
        super().__init__()
        self.D_fc1 = nn.Linear(width, hidden)
        self.act = _ACTIVATIONS[act]()
        self.D_fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        return self.D_fc2(self.act(self.D_fc1(x)))  # type: ignore[no-any-return]


class AdapterBlock(Block):  # type: ignore[misc]
    """A ViT block with a serial adapter after attention and one beside the MLP (4.2)."""

    def __init__(self, config: ModelConfig, *, window_size: int) -> None:
        super().__init__(
            dim=config.width,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=window_size,
            input_size=(config.grid_size, config.grid_size),
        )
        self.Space_Adapter = Adapter(config.width, config.adapter_dim, config.adapter_act)
        self.MLP_Adapter = Adapter(config.width, config.adapter_dim, config.adapter_act)
        self.adapter_scale = config.adapter_scale

    def forward(self, x: Tensor) -> Tensor:
        """Map [M, h, w, D] to [M, h, w, D]; the serial adapter sees the padded windows."""
        shortcut, (height, width) = x, x.shape[1:3]
        x = self.norm1(x)
        if self.window_size > 0:
            x, padded_hw = window_partition(x, self.window_size)
        x = self.attn(x)
        x = x + self.Space_Adapter(x)
        if self.window_size > 0:
            x = window_unpartition(x, self.window_size, padded_hw, (height, width))
        x = shortcut + x
        z = self.norm2(x)
        return x + self.mlp(z) + self.adapter_scale * self.MLP_Adapter(z)  # type: ignore[no-any-return]


class ImageEncoder(ImageEncoderViT):  # type: ignore[misc]
    """SAM's image encoder whose latter half has adapters and which also returns three maps."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            out_chans=EMBED_DIM,
            norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=config.window_size,
            global_attn_indexes=config.global_blocks,
        )
        self.intermediate_blocks = config.intermediate_blocks
        for index in config.adapter_blocks:
            window_size = 0 if index in config.global_blocks else config.window_size
            self.blocks[index] = AdapterBlock(config, window_size=window_size)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode frames.

        Args:
            image: [M, 3, S, S], normalised RGB (2.2).

        Returns:
            The neck's output [M, 256, h, w], not normalised, and the outputs of the first three
            global blocks, each [M, h, w, D].
        """
        x = self.patch_embed(image) + self.pos_embed
        intermediate: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.intermediate_blocks:
                intermediate.append(x)
        return self.neck(x.permute(0, 3, 1, 2)), intermediate


class L2Norm(nn.Module):
    """Division by the Euclidean norm, bounded below by 1e-12 (3.3).

    A module, so that a precision policy can name it: its sum of squares needs fp32.
    """

    def forward(self, x: Tensor, dim: int) -> Tensor:
        """Return x over its norm along `dim`."""
        norm: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
        return x / norm.clamp_min(1e-12)
