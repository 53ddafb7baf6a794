"""The two attentions of ReferDINO, and the decoder layer that both decoders are made of (4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from refsam_export.referdino.model.boxes import LevelSizes


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Cut [..., K, C] into heads [..., heads, K, C / heads]."""
    heads: Tensor = x.unflatten(-1, (num_heads, -1))
    return heads.transpose(-2, -3)


def join_heads(x: Tensor) -> Tensor:
    """Undo `split_heads`."""
    return x.transpose(-2, -3).flatten(-2)


class MultiHeadAttention(nn.Module):
    """Attention on the keys of `nn.MultiheadAttention`; it returns its weights too."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (width // num_heads) ** -0.5
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend; batches of one are repeated.

        Args:
            query: [B, Q, d].
            key: [B, K, d].
            value: [B, K, d].
            bias: added to the scores, broadcast to [B, heads, Q, K].

        Returns:
            The result [B, Q, d] and the weights [B, heads, Q, K].
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            split_heads(functional.linear(x, weight, offset), self.num_heads)
            for x, weight, offset in zip((query, key, value), weights, biases, strict=True)
        )
        scores = (q * self.scale) @ k.mT
        attention = (scores if bias is None else scores + bias).softmax(dim=-1)
        return self.out_proj(join_heads(attention @ v)), attention


class DeformableAttention(nn.Module):
    """Attention to a few sampled points of each map (4.1)."""

    def __init__(self, width: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        num_samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(width, 2 * num_samples)
        self.attention_weights = nn.Linear(width, num_samples)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, reference: Tensor, value: Tensor, sizes: LevelSizes) -> Tensor:
        """Sample the maps around each query's reference.

        Args:
            query: [B, Q, d].
            reference: [B or 1, Q, 2] points (x, y), or [B or 1, Q, 4] boxes; relative.
            value: [B, S, d], the cells of all levels.
            sizes: of the levels.

        Returns:
            [B, Q, d].
        """
        levels, points = self.num_levels, self.num_points
        heads = (self.num_heads, levels, points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*heads, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        weights = weights.unflatten(-1, (levels, points))
        values = split_heads(self.value_proj(value), self.num_heads)  # [B, heads, S, d / heads]
        maps = values.split([height * width for height, width in sizes], dim=-2)
        total: Tensor | None = None
        for level, size in enumerate(sizes):
            location = self._locations(reference, offsets[:, :, :, level], size)
            sampled = _sample(maps[level], location, size)  # [B, heads, d / heads, Q, points]
            weight = weights[:, :, :, level].transpose(1, 2)[:, :, None]
            part = (sampled * weight).sum(dim=-1)
            total = part if total is None else total + part
        assert total is not None
        out: Tensor = self.output_proj(total.flatten(1, 2).mT)
        return out

    def _locations(self, reference: Tensor, offset: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the places (x, y) to sample, [B, Q, heads, points, 2], relative to the map."""
        reference = reference[:, :, None, None]
        centre = reference[..., :2]
        if reference.shape[-1] == 4:
            return centre + offset * reference[..., 2:] * (0.5 / self.num_points)
        height, width = size
        return centre + torch.stack((offset[..., 0] / width, offset[..., 1] / height), dim=-1)


def _sample(values: Tensor, location: Tensor, size: tuple[int, int]) -> Tensor:
    """Sample each head's map bilinearly, 0 outside.

    Args:
        values: [B, heads, h * w, C].
        location: [B, Q, heads, points, 2].
        size: (h, w).

    Returns:
        [B, heads, C, Q, points].
    """
    num_heads = values.shape[1]
    image = values.mT.flatten(0, 1).unflatten(-1, size)
    grid = (2 * location - 1).transpose(1, 2).flatten(0, 1)
    sampled = functional.grid_sample(
        image, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    out: Tensor = sampled.unflatten(0, (-1, num_heads))
    return out


class DecoderLayer(nn.Module):
    """Self-attention, text attention, deformable attention, feed-forward (4.6); post-norm.

    The names of the norms are historical: `norm2` follows the self-attention, `norm1` the
    deformable one.
    """

    def __init__(
        self, width: int, num_heads: int, num_levels: int, num_points: int, ffn_dim: int
    ) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.ca_text = MultiHeadAttention(width, num_heads)
        self.catext_norm = nn.LayerNorm(width)
        self.cross_attn = DeformableAttention(width, num_heads, num_levels, num_points)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, width)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference: Tensor,
        text: Tensor,
        text_bias: Tensor,
        value: Tensor,
        sizes: LevelSizes,
    ) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Args:
            x: [B, Q, d].
            position: [B, Q, d], added to queries and to the keys of the self-attention.
            reference: boxes [B, Q, 4].
            text: [B, N, d].
            text_bias: added to the scores of tokens, [B, 1, 1, N].
            value: [B, S, d], the cells of all maps.
            sizes: of the maps.

        Returns:
            The embeddings [B, Q, d], and the self-attention's weights [B, heads, Q, Q], where row
            i says what query i looks at.
        """
        query = x + position
        attended, weights = self.self_attn(query, query, x)
        x = self.norm2(x + attended)
        x = self.catext_norm(x + self.ca_text(x + position, text, text, text_bias)[0])
        x = self.norm1(x + self.cross_attn(x + position, reference, value, sizes))
        x = self.norm3(x + self.linear2(torch.relu(self.linear1(x))))
        return x, weights
