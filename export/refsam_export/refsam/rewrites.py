"""Exact rewrites of the adapter blocks of an image encoder (refsam-model 4.4).

* `adapter-after-merge`: `Space_Adapter` works per token, so it may run after the windows are merged
  and the padding is dropped: 16 % fewer tokens at 64x64.
* `merged-mlp`: `mlp` and `MLP_Adapter` read the same input and their outputs are added, so
  they are one MLP of hidden width 4.25 D. With ReLU in the adapter the activation is per slice.

Relative position is rewritten by `attention`; LoRA is merged when a checkpoint is read (`parts`).
Weights are shared where they do not change.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from refsam_export.refsam.model.image_encoder import AdapterBlock, ImageEncoder
from refsam_export.refsam.model.sam import window_partition, window_unpartition
from refsam_trt.errors import UsageError


class MergedMlp(nn.Module):
    """`mlp(z) + scale * MLP_Adapter(z)` as one MLP."""

    def __init__(self, block: AdapterBlock) -> None:
        super().__init__()
        mlp, adapter, scale = block.mlp, block.MLP_Adapter, block.adapter_scale
        self.hidden = mlp.lin1.out_features
        self.act, self.adapter_act = mlp.act, adapter.act
        self.lin1 = _linear(
            torch.cat([mlp.lin1.weight, adapter.D_fc1.weight]),
            torch.cat([mlp.lin1.bias, adapter.D_fc1.bias]),
        )
        self.lin2 = _linear(
            torch.cat([mlp.lin2.weight, scale * adapter.D_fc2.weight], dim=1),
            mlp.lin2.bias + scale * adapter.D_fc2.bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        hidden = self.lin1(x)
        if isinstance(self.adapter_act, nn.GELU):
            return self.lin2(functional.gelu(hidden))  # type: ignore[no-any-return]
        wide, narrow = hidden[..., : self.hidden], hidden[..., self.hidden :]
        acted = torch.cat([self.act(wide), self.adapter_act(narrow)], dim=-1)
        return self.lin2(acted)  # type: ignore[no-any-return]


class RewrittenBlock(nn.Module):
    """An adapter block with another order of work.

    Args:
        block: whose weights are shared.
        is_adapter_last: `Space_Adapter` runs after the windows are merged.
        has_one_mlp: `mlp` and `MLP_Adapter` are one.
    """

    def __init__(self, block: AdapterBlock, *, is_adapter_last: bool, has_one_mlp: bool) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = block.norm1, block.attn, block.norm2
        self.window_size, self.adapter_scale = block.window_size, block.adapter_scale
        self.Space_Adapter = block.Space_Adapter
        self.is_adapter_last = is_adapter_last
        self.merged = MergedMlp(block) if has_one_mlp else None
        if not has_one_mlp:
            self.mlp, self.MLP_Adapter = block.mlp, block.MLP_Adapter

    def forward(self, x: Tensor) -> Tensor:
        """Map [M, h, w, D] to [M, h, w, D]."""
        x = x + self._attended(self.norm1(x))
        z = self.norm2(x)
        if self.merged is not None:
            return x + self.merged(z)  # type: ignore[no-any-return]
        return x + self.mlp(z) + self.adapter_scale * self.MLP_Adapter(z)  # type: ignore[no-any-return]

    def _attended(self, y: Tensor) -> Tensor:
        height, width = y.shape[1:3]
        if self.window_size:
            y, padded_hw = window_partition(y, self.window_size)
        y = self.attn(y)
        if not self.is_adapter_last:
            y = y + self.Space_Adapter(y)
        if self.window_size:
            y = window_unpartition(y, self.window_size, padded_hw, (height, width))
        return y + self.Space_Adapter(y) if self.is_adapter_last else y


REWRITES = ("adapter-after-merge", "merged-mlp")
"""Names that `--rewrites` takes."""

DEFAULT_REWRITES = ("adapter-after-merge",)
"""`merged-mlp` trades two small products for copies where the adapter has ReLU: ask for it."""


def parse_rewrites(text: str) -> tuple[str, ...]:
    """Return the rewrites of a comma-separated list, each once, in the order of `REWRITES`.

    Raises:
        UsageError: no such rewrite.
    """
    names = [] if text.strip() == "none" else [name.strip() for name in text.split(",")]
    if unknown := sorted(set(names) - set(REWRITES)):
        raise UsageError(
            f"rewrite {', '.join(map(repr, unknown))}: choose among {', '.join(REWRITES)}, "
            "separated by commas, or none"
        )
    return tuple(name for name in REWRITES if name in names)


def rewritten(encoder: ImageEncoder, names: tuple[str, ...]) -> ImageEncoder:
    """Return the encoder with the named rewrites; without any it is the encoder itself."""
    if not names:
        return encoder
    memo: dict[int, Any] = {id(t): t for t in encoder.state_dict(keep_vars=True).values()}
    copied = copy.deepcopy(encoder, memo)
    for index, block in enumerate(copied.blocks):
        if isinstance(block, AdapterBlock):
            copied.blocks[index] = RewrittenBlock(
                block,
                is_adapter_last="adapter-after-merge" in names,
                has_one_mlp="merged-mlp" in names,
            )
    return copied


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
