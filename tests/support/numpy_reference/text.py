"""The text path: the T5 encoder, the Cross-Modal MLP and the pooling (refsam-model 3.2, 3.3).

The specification names T5's relative buckets and the gated variant without their formulas; those
are written here from the T5 and T5 1.1 publications.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from numpy_reference.layers import Array, Weights, l2norm, linear, relu, softmax

if TYPE_CHECKING:
    from refsam_export.refsam.model.config import ModelConfig


def t5(
    weights: Weights,
    input_ids: NDArray[np.int64],
    *,
    num_heads: int,
    d_kv: int,
    num_buckets: int = 32,
    max_distance: int = 128,
    eps: float = 1e-6,
    gated: bool = False,
) -> Array:
    """Return T5's `last_hidden_state` [N,d] of one un-padded expression `input_ids` [N].

    The number of blocks is what `weights` holds; keys carry the prefix `text_encoder.`.
    """
    first = "text_encoder.encoder.block.0.layer.0.SelfAttention"
    table = weights[f"{first}.relative_attention_bias.weight"]
    bias = position_bias(table, len(input_ids), num_buckets, max_distance)
    x = weights["text_encoder.shared.weight"][input_ids]
    i = 0
    while f"text_encoder.encoder.block.{i}.layer.0.layer_norm.weight" in weights:
        name = f"text_encoder.encoder.block.{i}.layer"
        y = rms_norm(weights[f"{name}.0.layer_norm.weight"], x, eps)
        x = x + self_attention(weights, f"{name}.0.SelfAttention", y, bias, num_heads, d_kv)
        y = rms_norm(weights[f"{name}.1.layer_norm.weight"], x, eps)
        x = x + feed_forward(weights, f"{name}.1.DenseReluDense", y, gated)
        i += 1
    return rms_norm(weights["text_encoder.encoder.final_layer_norm.weight"], x, eps)


def rms_norm(scale: Array, x: Array, eps: float) -> Array:
    """Divide the last axis by its root mean square, then scale."""
    y: Array = scale * x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)
    return y


def self_attention(
    weights: Weights, name: str, x: Array, bias: Array, num_heads: int, d_kv: int
) -> Array:
    """Attend over the words, one head at a time; no 1/sqrt(d), `bias` [heads,N,N] added."""
    q, k, v = (
        (x @ weights[f"{name}.{part}.weight"].T).reshape(-1, num_heads, d_kv) for part in "qkv"
    )
    out = np.empty_like(q)
    for head in range(num_heads):
        out[:, head] = softmax(q[:, head] @ k[:, head].T + bias[head]) @ v[:, head]
    return out.reshape(len(x), num_heads * d_kv) @ weights[f"{name}.o.weight"].T


def feed_forward(weights: Weights, name: str, x: Array, gated: bool) -> Array:
    """Apply `wo relu(wi x)`, or T5 1.1's `wo (gelu_tanh(wi_0 x) * (wi_1 x))` if `gated`."""
    if gated:
        gate = gelu_tanh(x @ weights[f"{name}.wi_0.weight"].T)
        hidden = gate * (x @ weights[f"{name}.wi_1.weight"].T)
    else:
        hidden = relu(x @ weights[f"{name}.wi.weight"].T)
    return hidden @ weights[f"{name}.wo.weight"].T


def gelu_tanh(x: Array) -> Array:
    """Approximate GELU by tanh, as T5 1.1 does; nothing else in RefSAM uses this form."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def position_bias(table: Array, length: int, num_buckets: int, max_distance: int) -> Array:
    """Return the bias [heads,N,N] of query i and key j from `table` [num_buckets,heads]."""
    bias = np.empty((table.shape[1], length, length))
    for i in range(length):
        for j in range(length):
            bias[:, i, j] = table[relative_bucket(j - i, num_buckets, max_distance)]
    return bias


def relative_bucket(offset: int, num_buckets: int, max_distance: int) -> int:
    """Return the bucket of a key `offset` words after the query (negative: before it).

    Half of the buckets serve each direction; in each, the first half are single distances and the
    rest grow logarithmically up to `max_distance`, beyond which all distances share the last.
    """
    per_side = num_buckets // 2
    exact = per_side // 2
    distance = abs(offset)
    if distance < exact:
        bucket = distance
    else:
        fraction = math.log(distance / exact) / math.log(max_distance / exact)
        bucket = min(exact + int(fraction * (per_side - exact)), per_side - 1)
    return bucket + per_side if offset > 0 else bucket


def embed(weights: Weights, config: ModelConfig, x: Array) -> tuple[Array, Array]:
    """Return `words` [N,256] and `sentence` [256] of one text-encoder output `x` [N,d]."""
    words = cross_modal_mlp(weights, x)
    sentence = cross_modal_mlp(weights, x.mean(axis=0))
    if not config.l2norm_text:
        return words, sentence
    return l2norm(words, -1), l2norm(sentence, -1)


def cross_modal_mlp(weights: Weights, x: Array) -> Array:
    """Map text features [...,d] to [...,256]: the Linear layers by index, ReLU between them."""
    indexes = sorted(int(key.split(".")[1]) for key in weights if is_resizer_weight(key))
    for index in indexes:
        x = linear(weights, f"resizer.{index}", x if index == indexes[0] else relu(x))
    return x


def is_resizer_weight(key: str) -> bool:
    """Tell whether `key` is the matrix of a layer of the Cross-Modal MLP."""
    return key.startswith("resizer.") and key.endswith(".weight")
