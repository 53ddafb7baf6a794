"""Text encoders on transformers' weights, spelled for export (refsam-model 3.2, 3.4).

transformers builds its masks and positions with Python logic on shapes; here the positions up to
`max_words` are constants that are sliced, so that B and N stay dynamic. Attention is matmul,
softmax, matmul.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from refsam_export.key_bias import MASKED, key_bias
from refsam_trt.errors import CheckpointError


def attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int, bias: Tensor) -> Tensor:
    """Attend with projected q, k, v [B, N, C]; `bias` is added to the scores, which are not scaled.

    Returns:
        [B, N, C], the heads side by side.
    """

    def split(x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (num_heads, -1)).transpose(1, 2)

    scores = split(q) @ split(k).transpose(-1, -2)
    return (torch.softmax(scores + bias, dim=-1) @ split(v)).transpose(1, 2).flatten(-2)


def quick_gelu(x: Tensor) -> Tensor:
    """Approximate GELU as the first CLIP does."""
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "quick_gelu": quick_gelu,
}


class RmsNorm(nn.Module):
    """T5's norm on the weight of transformers' module: scale only, no mean taken off."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.weight, self.epsilon = module.weight, module.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., d] to [..., d]."""
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * (x * scale)  # type: ignore[no-any-return]


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
        self.norms: Any = nn.ModuleList(
            nn.ModuleList(RmsNorm(sub_layer.layer_norm) for sub_layer in block.layer)
            for block in self.blocks
        )
        self.final_norm = RmsNorm(encoder.encoder.final_layer_norm)
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
        for block, norms in zip(self.blocks, self.norms, strict=True):
            attention_norm, dense_norm = norms
            y, module = attention_norm(x), block.layer[0].SelfAttention
            x = x + module.o(attend(module.q(y), module.k(y), module.v(y), self.num_heads, bias))
            dense = block.layer[1].DenseReluDense
            x = x + dense.wo(torch.relu(dense.wi(dense_norm(x))))
        return self.final_norm(x)  # type: ignore[no-any-return]


class RobertaGraph(nn.Module):
    """The same of RoBERTa: norms after each branch, positions counted from behind the pad's id."""

    positions: Tensor  # [max_words, d], the only token type added

    def __init__(self, encoder: Any, max_words: int) -> None:
        super().__init__()
        config, embeddings = encoder.config, encoder.embeddings
        self.num_heads = config.num_attention_heads
        self.act = _ACTIVATIONS[config.hidden_act]
        self.embedding, self.norm = embeddings.word_embeddings, embeddings.LayerNorm
        self.layers = encoder.encoder.layer
        first = config.pad_token_id + 1
        table = embeddings.position_embeddings.weight[first : first + max_words]
        kind = embeddings.token_type_embeddings.weight[0]
        self.register_buffer("positions", (table + kind).detach().clone())

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Encode a padded batch; pads are no keys."""
        x = self.norm(self.embedding(input_ids) + self.positions[: input_ids.shape[1]])
        bias = key_bias(mask, x.dtype)[:, None, None]
        for layer in self.layers:
            module, after = layer.attention.self, layer.attention.output
            q = module.query(x) * (x.shape[-1] // self.num_heads) ** -0.5
            y = attend(q, module.key(x), module.value(x), self.num_heads, bias)
            x = after.LayerNorm(x + after.dense(y))
            y = layer.output.dense(self.act(layer.intermediate.dense(x)))
            x = layer.output.LayerNorm(x + y)
        return x  # type: ignore[no-any-return]


class ClipGraph(nn.Module):
    """The same of CLIP: norms before each branch, and no token sees those behind it."""

    positions: Tensor  # [max_words, d]
    later: Tensor  # [max_words, max_words]: the bias of keys behind their query

    def __init__(self, encoder: Any, max_words: int) -> None:
        super().__init__()
        config, embeddings = encoder.config, encoder.embeddings
        self.num_heads = config.num_attention_heads
        self.act = _ACTIVATIONS[config.hidden_act]
        self.embedding = embeddings.token_embedding
        self.layers, self.norm = encoder.encoder.layers, encoder.final_layer_norm
        table = embeddings.position_embedding.weight[:max_words].detach().clone()
        later = torch.full((max_words, max_words), MASKED, dtype=table.dtype).triu(1)
        self.register_buffer("positions", table)
        self.register_buffer("later", later)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Encode a padded batch; pads are no keys."""
        num_words = input_ids.shape[1]
        x = self.embedding(input_ids) + self.positions[:num_words]
        bias = self.later[:num_words, :num_words] + key_bias(mask, x.dtype)[:, None, None]
        for layer in self.layers:
            y, module = layer.layer_norm1(x), layer.self_attn
            q = module.q_proj(y) * (x.shape[-1] // self.num_heads) ** -0.5
            y = attend(q, module.k_proj(y), module.v_proj(y), self.num_heads, bias)
            x = x + module.out_proj(y)
            x = x + layer.mlp.fc2(self.act(layer.mlp.fc1(layer.layer_norm2(x))))
        return self.norm(x)  # type: ignore[no-any-return]


_GRAPHS: dict[str, Callable[[Any, int], nn.Module]] = {
    "t5": T5Graph,
    "roberta": RobertaGraph,
    "clip_text_model": ClipGraph,
}


def text_graph(encoder: Any, max_words: int) -> nn.Module:
    """Return the export form of transformers' module: `input_ids`, bool mask -> [B, N, d]."""
    return _GRAPHS[encoder.config.model_type](encoder, max_words)
