"""Swin and BERT (3)."""

import numpy as np

from referdino_twin.layers import Array, Weights, count, gelu, layer_norm, linear, softmax

_SWIN = "backbone.0"


def swin(w: Weights, image: Array) -> list[Array]:
    """Return the normalised outputs [h, w, C] of the stages for an image [3, H, W]."""
    stages = []
    x = _patches(w, image)
    for stage in range(4):
        name = f"{_SWIN}.layers.{stage}"
        for block in range(count(w, f"{name}.blocks.")):
            x = _block(w, f"{name}.blocks.{block}", x, is_odd=block % 2 == 1)
        stages.append(layer_norm(w, f"{_SWIN}.norm{stage}", x))
        if stage < 3:
            x = _merge(w, f"{name}.downsample", x)
    return stages


def _patches(w: Weights, image: Array) -> Array:
    _, height, width = image.shape
    image = np.pad(image, ((0, 0), (0, -height % 4), (0, -width % 4)))
    kernel, bias = w[f"{_SWIN}.patch_embed.proj.weight"], w[f"{_SWIN}.patch_embed.proj.bias"]
    rows, columns = image.shape[1] // 4, image.shape[2] // 4
    out = np.empty((rows, columns, len(kernel)))
    for i in range(rows):
        for j in range(columns):
            patch = image[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            out[i, j] = (kernel * patch).sum((1, 2, 3)) + bias
    return layer_norm(w, f"{_SWIN}.patch_embed.norm", out)


def _block(w: Weights, name: str, x: Array, *, is_odd: bool) -> Array:
    height, width, channels = x.shape
    table = w[f"{name}.attn.relative_position_bias_table"]
    window = (int(np.sqrt(len(table))) + 1) // 2
    shift = window // 2 if is_odd else 0
    y = np.zeros((-(-height // window) * window, -(-width // window) * window, channels))
    y[:height, :width] = layer_norm(w, f"{name}.norm1", x)
    hp, wp = y.shape[:2]
    rows, columns = (np.arange(hp) + shift) % hp, (np.arange(wp) + shift) % wp
    rolled = y[rows][:, columns]
    result = np.empty_like(rolled)
    for top in range(0, hp, window):
        for left in range(0, wp, window):
            part = rolled[top : top + window, left : left + window].reshape(-1, channels)
            cells = [(top + i, left + j) for i in range(window) for j in range(window)]
            region = np.array(
                [
                    3 * _region(i, hp, window, shift) + _region(j, wp, window, shift)
                    for i, j in cells
                ]
            )
            apart = (region[:, None] != region) & (shift > 0)
            out = _window(w, f"{name}.attn", part, window, apart)
            result[top : top + window, left : left + window] = out.reshape(window, window, -1)
    back = np.empty_like(result)
    back[np.ix_(rows, columns)] = result
    x = x + back[:height, :width]
    hidden = gelu(linear(w, f"{name}.mlp.fc1", layer_norm(w, f"{name}.norm2", x)))
    return x + linear(w, f"{name}.mlp.fc2", hidden)


def _region(i: int, n: int, window: int, shift: int) -> int:
    return int(i >= n - window) + int(i >= n - shift)


def _window(w: Weights, name: str, x: Array, window: int, apart: Array) -> Array:
    channels = x.shape[1]
    table = w[f"{name}.relative_position_bias_table"]
    heads = table.shape[1]
    size = channels // heads
    qkv = linear(w, f"{name}.qkv", x)
    places = [(y, x_) for y in range(window) for x_ in range(window)]
    index = np.array(
        [
            [(ya - yb + window - 1) * (2 * window - 1) + xa - xb + window - 1 for yb, xb in places]
            for ya, xa in places
        ]
    )
    results = []
    for head in range(heads):
        q, k, v = (
            qkv[:, part * channels + head * size : part * channels + (head + 1) * size]
            for part in range(3)
        )
        scores = q * size**-0.5 @ k.T + table[index, head] - 100.0 * apart
        results.append(softmax(scores, 1) @ v)
    return linear(w, f"{name}.proj", np.concatenate(results, 1))


def _merge(w: Weights, name: str, x: Array) -> Array:
    height, width, channels = x.shape
    padded = np.zeros((height + height % 2, width + width % 2, channels))
    padded[:height, :width] = x
    phases = [padded[0::2, 0::2], padded[1::2, 0::2], padded[0::2, 1::2], padded[1::2, 1::2]]
    return linear(w, f"{name}.reduction", layer_norm(w, f"{name}.norm", np.concatenate(phases, 2)))


def bert(w: Weights, ids: Array, position_ids: Array, self_mask: Array, heads: int) -> Array:
    """Return the last layer's output [N, hidden]."""
    name = "bert.embeddings"
    x = (
        w[f"{name}.word_embeddings.weight"][ids]
        + w[f"{name}.token_type_embeddings.weight"][0]
        + w[f"{name}.position_embeddings.weight"][position_ids]
    )
    x = layer_norm(w, f"{name}.LayerNorm", x, 1e-12)
    size = x.shape[1] // heads
    for index in range(count(w, "bert.encoder.layer.")):
        name = f"bert.encoder.layer.{index}"
        q, k, v = (
            linear(w, f"{name}.attention.self.{part}", x) for part in ("query", "key", "value")
        )
        results = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = np.where(self_mask, q[:, part] @ k[:, part].T / np.sqrt(size), -np.inf)
            results.append(softmax(scores, 1) @ v[:, part])
        a = linear(w, f"{name}.attention.output.dense", np.concatenate(results, 1))
        x = layer_norm(w, f"{name}.attention.output.LayerNorm", x + a, 1e-12)
        a = linear(w, f"{name}.output.dense", gelu(linear(w, f"{name}.intermediate.dense", x)))
        x = layer_norm(w, f"{name}.output.LayerNorm", x + a, 1e-12)
    return x
