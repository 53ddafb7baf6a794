"""The ViT's attention with decomposed relative position, spelled for inference compilers.

Three forms of one computation (refsam-model 4.2, 4.4; all exact up to rounding):

* `reference`: SAM's own: scores viewed as five dims, two broadcast additions.
* `bias`: the two terms summed to one [heads, N, N] tensor, added once.
* `augmented`: the terms folded into the product: q' = [q / sqrt(d), q Rh, q Rw],
  k' = [k, one-hot(row), one-hot(column)], so that q' k'^T is already the biased score; no N x N
  bias exists. V is padded with zeros to the width of q', because TensorRT fuses only equal widths.

Attention is matmul, softmax, matmul: `scaled_dot_product_attention` followed by a transpose breaks
the exporter of torch 2.13. Two more forms are never exported. `sdpa` is `augmented` with that
operator, what PyTorch itself is fastest with on a GPU; `headwise` is `reference` a few heads at a
time, so that the reference of a full-size model fits into memory.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from refsam_export.refsam.model.image_encoder import ImageEncoder
from refsam_export.refsam.model.sam import add_decomposed_rel_pos, get_rel_pos
from refsam_trt.errors import UsageError

FORMS = ("reference", "bias", "augmented")
"""The forms that graphs can have."""

SDPA = "sdpa"
"""For PyTorch alone."""

HEADWISE = "headwise"
"""For PyTorch alone."""

_MAX_SCORES = 4096**2
"""Scores that `headwise` has in memory at once: those of one head over a whole frame. The heads of
all windows of a frame together have fewer."""


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


class HeadwiseAttention(nn.Module):
    """The `headwise` form: SAM's own arithmetic, on as many heads at once as memory is meant for.

    SAM holds three tensors of all scores at a time, 3.2 GB for one frame of ViT-H. Heads do not
    know of each other, so that nothing changes but how many of them one product computes.
    """

    def __init__(self, attention: Any, side: int) -> None:
        super().__init__()
        self.attention, self.side = attention, side

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, S, S, D] to [B, S, S, D]."""
        of, (batch, side, _, width) = self.attention, x.shape
        qkv = of.qkv(x).reshape(batch, side * side, 3, of.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, batch * of.num_heads, side * side, -1).unbind(0)
        at_once = max(1, _MAX_SCORES // side**4)
        parts = zip(q.split(at_once), k.split(at_once), v.split(at_once), strict=True)
        out = torch.cat([self._attend(*part) for part in parts])
        out = out.view(batch, of.num_heads, side, side, -1).permute(0, 2, 3, 1, 4)
        return of.proj(out.reshape(batch, side, side, width))  # type: ignore[no-any-return]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return what some heads give, [heads, N, d]."""
        of, hw = self.attention, (self.side, self.side)
        scores = (q * of.scale) @ k.transpose(-2, -1)
        scores = add_decomposed_rel_pos(scores, q, of.rel_pos_h, of.rel_pos_w, hw, hw)
        return torch.softmax(scores, dim=-1) @ v


_CLASSES = {
    HEADWISE: HeadwiseAttention,
    "bias": BiasAttention,
    "augmented": AugmentedAttention,
    SDPA: SdpaAttention,
}


def with_attention(encoder: ImageEncoder, form: str) -> ImageEncoder:
    """Return the encoder with its attention in the given form; weights are shared, not copied.

    Raises:
        UsageError: no such form.
    """
    if form not in (*FORMS, SDPA, HEADWISE):
        raise UsageError(f"no attention form {form!r}; choose one of {', '.join(FORMS)}")
    if form == "reference":
        return encoder
    memo = {id(tensor): tensor for tensor in encoder.state_dict(keep_vars=True).values()}
    rewritten = copy.deepcopy(encoder, memo)
    grid = int(encoder.pos_embed.shape[1])
    for block in rewritten.blocks:
        block.attn = _CLASSES[form](block.attn, block.window_size or grid)
    return rewritten
