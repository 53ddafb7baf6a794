"""T5's encoder on transformers' weights, spelled for export (refsam-model 3.2).

transformers builds its masks and position buckets with Python logic on shapes; here the bias table
of every distance up to `max_words` is a constant and is sliced, so that B and N stay dynamic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from refsam_export.model.hda import key_bias
from refsam_trt.errors import CheckpointError


class T5Graph(nn.Module):
    """int64 `input_ids` and bool mask [B, N] -> last hidden state [B, N, d]."""

    position_bias: Tensor

    def __init__(self, encoder: Any, max_words: int) -> None:
        super().__init__()
        config = encoder.config
        if config.is_gated_act or config.dense_act_fn != "relu":
            raise CheckpointError(
                f"text encoder: feed_forward_proj {config.feed_forward_proj!r}; expected 'relu' "
                "(the original T5, as in the paper)"
            )
        self.num_heads = config.num_heads
        self.embedding = encoder.shared
        self.blocks = encoder.encoder.block
        self.final_norm = encoder.encoder.final_layer_norm
        first = self.blocks[0].layer[0].SelfAttention
        with torch.no_grad():
            bias = first.compute_bias(max_words, max_words)
        self.register_buffer("position_bias", bias.detach().clone())

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Encode a padded batch; pads are no keys."""
        x = self.embedding(input_ids)
        num_words = input_ids.shape[1]
        bias = self.position_bias[:, :, :num_words, :num_words]
        bias = bias + key_bias(mask, x.dtype)[:, None, None]
        for block in self.blocks:
            attention, feed_forward = block.layer[0], block.layer[1]
            y = self._norm(attention.layer_norm, x)
            x = x + self._attend(attention.SelfAttention, y, bias)
            dense = feed_forward.DenseReluDense
            x = x + dense.wo(torch.relu(dense.wi(self._norm(feed_forward.layer_norm, x))))
        return self._norm(self.final_norm, x)

    def _attend(self, module: Any, y: Tensor, bias: Tensor) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return torch.unflatten(x, -1, (self.num_heads, -1)).transpose(1, 2)

        q, k, v = split(module.q(y)), split(module.k(y)), split(module.v(y))
        out = torch.softmax(q @ k.transpose(-1, -2) + bias, dim=-1) @ v
        return module.o(out.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]

    @staticmethod
    def _norm(module: Any, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
        return module.weight * (x * scale)  # type: ignore[no-any-return]


def text_graph(encoder: Any, max_words: int) -> nn.Module:
    """Return the export form of transformers' encoder: `input_ids`, bool mask -> [B, N, d]."""
    return T5Graph(encoder, max_words)
