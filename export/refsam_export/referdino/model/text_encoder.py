"""BERT without its pooler, where each block of an expression counts its own positions (3.2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from refsam_export.key_bias import key_bias
from refsam_export.referdino.model.attention import join_heads, split_heads
from refsam_export.referdino.model.config import ModelConfig

_EPS = 1e-12


class _Embeddings(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.bert_width
        self.word_embeddings = nn.Embedding(config.vocabulary, width)
        self.position_embeddings = nn.Embedding(config.bert_positions, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.LayerNorm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Embed tokens, all of type 0."""
        words, positions = self.word_embeddings(input_ids), self.position_embeddings(position_ids)
        x: Tensor = self.LayerNorm(words + self.token_type_embeddings.weight[0] + positions)
        return x


class _Output(nn.Module):
    """A projection that is added to what came before, and normalised."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, width)
        self.LayerNorm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(before + self.dense(x))
        return out


class _Layer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.bert_width
        self.num_heads = config.bert_heads
        self.scale = (width // self.num_heads) ** -0.5
        projections = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict(
            {"self": nn.ModuleDict(projections), "output": _Output(width, width)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, config.bert_ffn)})
        self.output = _Output(config.bert_ffn, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        projections = self.attention["self"]
        assert isinstance(projections, nn.ModuleDict)
        q, k, v = (
            split_heads(projections[name](x), self.num_heads) for name in ("query", "key", "value")
        )
        attention = ((q * self.scale) @ k.mT + bias).softmax(dim=-1)
        x = self.attention["output"](join_heads(attention @ v), x)
        hidden = functional.gelu(self.intermediate["dense"](x))
        out: Tensor = self.output(hidden, x)
        return out


class Bert(nn.Module):
    """BERT on the keys of transformers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        layers = nn.ModuleList(_Layer(config) for _ in range(config.bert_layers))
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(self, input_ids: Tensor, position_ids: Tensor, text_self_mask: Tensor) -> Tensor:
        """Encode expressions.

        Args:
            input_ids: int64 [B, N].
            position_ids: int64 [B, N], counted within each block (2.2).
            text_self_mask: bool [B, N, N], true where a token (row) may look at another.

        Returns:
            The last layer's output [B, N, width of BERT].
        """
        x: Tensor = self.embeddings(input_ids, position_ids)
        bias = key_bias(text_self_mask, x.dtype)[:, None]
        layers = self.encoder["layer"]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            x = layer(x, bias)
        return x
