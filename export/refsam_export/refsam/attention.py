"""The ViT's attention with decomposed relative position, spelled for inference compilers.

Three forms of one computation (refsam-model 4.2, 4.4; all exact up to rounding):

* `reference`: SAM's own: scores viewed as five dims, two broadcast additions.
* `bias`: the two terms summed to one [heads, N, N] tensor, added once.
* `augmented`: the terms folded into the product: q' = [q / sqrt(d), q Rh, q Rw],
  k' = [k, one-hot(row), one-hot(column)], so that q' k'^T is already the biased score; no N x N
  bias exists. V is padded with zeros to the width of q', because TensorRT fuses only equal widths.

Attention is matmul, softmax, matmul: `scaled_dot_product_attention` followed by a transpose breaks
the exporter of torch 2.13. A fourth form, `sdpa`, is `augmented` with that operator: it is never
exported, but what PyTorch itself is fastest with on a GPU.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from refsam_export.refsam.model.image_encoder import ImageEncoder
from refsam_export.refsam.model.sam import get_rel_pos
from refsam_trt.errors import UsageError

FORMS = ("reference", "bias", "augmented")
"""The forms that graphs can have."""

SDPA = "sdpa"
"""For PyTorch alone."""


class _RelPosAttention(nn.Module):
    """Shares the projections of a SAM attention; holds its relative tables per query and key."""

    rel_h: Tensor  # [S, d, S]: for query row i, the table transposed
    rel_w: Tensor

    def __init__(self, attention: Any, side: int) -> None:
        super().__init__()
        self.num_heads, self.scale, self.side = attention.num_heads, attention.scale, side
        self.qkv, self.proj = attention.qkv, attention.proj
        for name in ("rel_h", "rel_w"):
            table = getattr(attention, name.replace("rel", "rel_pos"))
            self.register_buffer(name, get_rel_pos(side, side, table).transpose(1, 2).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, S, S, D] to [B, S, S, D]."""
        batch, side, _, width = x.shape
        qkv = self.qkv(x).reshape(batch, side * side, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        out = self._attend(q, k, v, *self._rel_terms(q)).transpose(1, 2)
        return self.proj(out.reshape(batch, side, side, width))  # type: ignore[no-any-return]

    def _rel_terms(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return q.Rh and q.Rw, [B, heads, N, S] each, from the unscaled q (4.2)."""
        grid = q.unflatten(2, (self.side, self.side))
        rows = grid @ self.rel_h
        columns = (grid.transpose(2, 3) @ self.rel_w).transpose(2, 3)
        return rows.flatten(2, 3), columns.flatten(2, 3)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        raise NotImplementedError


class BiasAttention(_RelPosAttention):
    """The `bias` form."""

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        bias = (rows[..., :, None] + columns[..., None, :]).flatten(-2)
        scores = (q * self.scale) @ k.transpose(-1, -2) + bias
        return torch.softmax(scores, dim=-1) @ v


class AugmentedAttention(_RelPosAttention):
    """The `augmented` form."""

    one_hot: Tensor  # [1, 1, N, 2 S]

    def __init__(self, attention: Any, side: int) -> None:
        super().__init__(attention, side)
        index = torch.arange(side * side)
        eye = torch.eye(side, dtype=self.rel_h.dtype)
        one_hot = torch.cat([eye[index // side], eye[index % side]], dim=-1)
        self.register_buffer("one_hot", one_hot[None, None])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        batch, width = k.shape[0], v.shape[-1]
        query = torch.cat([q * self.scale, rows, columns], dim=-1)
        key = torch.cat([k, self.one_hot.expand(batch, self.num_heads, -1, -1)], dim=-1)
        value = functional.pad(v, (0, 2 * self.side))
        return self._product(query, key, value)[..., :width]

    def _product(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.softmax(query @ key.transpose(-1, -2), dim=-1) @ value


class SdpaAttention(AugmentedAttention):
    """The `sdpa` form: no scores in memory, so that PyTorch takes a flash kernel in fp16."""

    def _product(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value, scale=1.0)


_CLASSES = {"bias": BiasAttention, "augmented": AugmentedAttention, SDPA: SdpaAttention}


def with_attention(encoder: ImageEncoder, form: str) -> ImageEncoder:
    """Return the encoder with its attention in the given form; weights are shared, not copied.

    Raises:
        UsageError: no such form.
    """
    if form not in (*FORMS, SDPA):
        raise UsageError(f"no attention form {form!r}; choose one of {', '.join(FORMS)}")
    if form == "reference":
        return encoder
    memo = {id(tensor): tensor for tensor in encoder.state_dict(keep_vars=True).values()}
    rewritten = copy.deepcopy(encoder, memo)
    grid = int(encoder.pos_embed.shape[1])
    for block in rewritten.blocks:
        block.attn = _CLASSES[form](block.attn, block.window_size or grid)
    return rewritten
