"""What all parts are made of (4, 4.1)."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import erf

Array = np.ndarray
Weights = Mapping[str, Array]
Sizes = Sequence[tuple[int, int]]

HEADS = 8


def linear(w: Weights, name: str, x: Array) -> Array:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def layer_norm(w: Weights, name: str, x: Array, eps: float = 1e-5) -> Array:
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(x / 2))


def relu(x: Array) -> Array:
    return np.where(x > 0, x, 0.0)


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def sine(p: Array, n: int, tau: float) -> Array:
    out = np.empty((*p.shape, n))
    for k in range(n):
        angle = 2 * np.pi * p / tau ** (2 * (k // 2) / n)
        out[..., k] = np.sin(angle) if k % 2 == 0 else np.cos(angle)
    return out


def inv_sigmoid(x: Array) -> Array:
    x = np.minimum(np.maximum(x, 0.0), 1.0)
    return np.log(np.maximum(x, 1e-3) / np.maximum(1 - x, 1e-3))


def mlp(w: Weights, name: str, x: Array, count: int) -> Array:
    for index in range(count):
        x = linear(w, f"{name}.layers.{index}", x)
        x = relu(x) if index < count - 1 else x
    return x


def feed_forward(w: Weights, name: str, x: Array) -> Array:
    return linear(w, f"{name}.linear2", relu(linear(w, f"{name}.linear1", x)))


def mha(
    w: Weights,
    name: str,
    q: Array,
    k: Array,
    v: Array,
    heads: int = HEADS,
    allowed: Array | None = None,
) -> tuple[Array, Array]:
    """Return [Q, d] and the mean of the weights over heads [Q, K]."""
    d = q.shape[-1]
    size = d // heads
    weight, bias = w[f"{name}.in_proj_weight"], w[f"{name}.in_proj_bias"]
    q = q @ weight[:d].T + bias[:d]
    k = k @ weight[d : 2 * d].T + bias[d : 2 * d]
    v = v @ weight[2 * d :].T + bias[2 * d :]
    results, mean = [], np.zeros((len(q), len(k)))
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[:, part] @ k[:, part].T / np.sqrt(size)
        if allowed is not None:
            scores = np.where(allowed, scores, -np.inf)
        a = softmax(scores, 1)
        mean += a / heads
        results.append(a @ v[:, part])
    return linear(w, f"{name}.out_proj", np.concatenate(results, 1)), mean


def bilinear(image: Array, x: Array, y: Array) -> Array:
    """Sample [h, w, C] at places in cells; nothing outside."""
    height, width = image.shape[:2]
    out = np.zeros((len(x), image.shape[2]))
    for yi in (np.floor(y), np.floor(y) + 1):
        for xi in (np.floor(x), np.floor(x) + 1):
            weight = (1 - np.abs(x - xi)) * (1 - np.abs(y - yi))
            inside = (xi >= 0) & (xi < width) & (yi >= 0) & (yi < height)
            row, column = np.where(inside, yi, 0).astype(int), np.where(inside, xi, 0).astype(int)
            out += np.where(inside, weight, 0)[:, None] * image[row, column]
    return out


def deformable(
    w: Weights, name: str, query: Array, reference: Array, memory: Array, sizes: Sizes
) -> Array:
    value = linear(w, f"{name}.value_proj", memory)
    offsets = linear(w, f"{name}.sampling_offsets", query)
    raw = linear(w, f"{name}.attention_weights", query)
    levels = len(sizes)
    points = raw.shape[1] // (HEADS * levels)
    offsets = offsets.reshape(len(query), HEADS, levels, points, 2)
    weights = softmax(raw.reshape(len(query), HEADS, levels * points), 2)
    weights = weights.reshape(len(query), HEADS, levels, points)
    size = value.shape[1] // HEADS
    starts = np.cumsum([0, *(h * w_ for h, w_ in sizes)])
    heads = []
    for head in range(HEADS):
        total = np.zeros((len(query), size))
        for level, (height, width) in enumerate(sizes):
            rows = value[starts[level] : starts[level + 1], head * size : (head + 1) * size]
            image = rows.reshape(height, width, size)
            for point in range(points):
                dx, dy = offsets[:, head, level, point].T
                if reference.shape[1] == 2:
                    x, y = reference[:, 0] + dx / width, reference[:, 1] + dy / height
                else:
                    x = reference[:, 0] + dx * reference[:, 2] * 0.5 / points
                    y = reference[:, 1] + dy * reference[:, 3] * 0.5 / points
                sample = bilinear(image, x * width - 0.5, y * height - 0.5)
                total += weights[:, head, level, point, None] * sample
        heads.append(total)
    return linear(w, f"{name}.output_proj", np.concatenate(heads, 1))


def conv(w: Weights, name: str, x: Array, stride: int = 1, padding: int = 0) -> Array:
    """Map [C, h, w] to [D, h', w']."""
    kernel, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    size = kernel.shape[2]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    height = (x.shape[1] - size) // stride + 1
    width = (x.shape[2] - size) // stride + 1
    out = np.zeros((kernel.shape[0], height, width)) + bias[:, None, None]
    for i in range(size):
        for j in range(size):
            part = x[:, i : i + stride * height : stride, j : j + stride * width : stride]
            out += np.tensordot(kernel[:, :, i, j], part[:, :height, :width], 1)
    return out


def group_norm(w: Weights, name: str, x: Array, groups: int) -> Array:
    size = len(x) // groups
    out = np.empty_like(x)
    for start in range(0, len(x), size):
        part = x[start : start + size]
        out[start : start + size] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    return out * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def count(w: Weights, prefix: str) -> int:
    """Return how many numbers follow `prefix` in the keys."""
    numbers = {key[len(prefix) :].split(".")[0] for key in w if key.startswith(prefix)}
    return len({number for number in numbers if number.isdigit()})
