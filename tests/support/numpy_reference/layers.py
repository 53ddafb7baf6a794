"""The layers that several parts of RefSAM share, each written straight from its definition.

Everything is float64 and for one image and one expression. `weights` maps canonical key -> array.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]
EMBED_DIM = 256


def linear(weights: Weights, name: str, x: Array) -> Array:
    """Apply a Linear layer with bias to the last axis of `x`."""
    y: Array = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return y


def layer_norm(weights: Weights, name: str, x: Array, eps: float) -> Array:
    """Normalise the last axis by its mean and biased variance, then scale and shift."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    normalised: Array = centred / np.sqrt(variance + eps)
    return normalised * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def layer_norm_2d(weights: Weights, name: str, x: Array) -> Array:
    """Normalise the channels of every pixel of `x` [C,h,w]; eps 1e-6."""
    return np.moveaxis(layer_norm(weights, name, np.moveaxis(x, 0, -1), eps=1e-6), -1, 0)


def relu(x: Array) -> Array:
    """Replace negative values by zero."""
    return np.maximum(x, 0.0)


def gelu(x: Array) -> Array:
    """Weight each value by the standard normal distribution function (the erf form)."""
    erf = np.fromiter(map(math.erf, (x / math.sqrt(2.0)).ravel()), np.float64, count=x.size)
    return 0.5 * x * (1.0 + erf.reshape(x.shape))


def softmax(scores: Array) -> Array:
    """Turn every row (last axis) of scores into positive weights of sum 1."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    rows: Array = powers / powers.sum(axis=-1, keepdims=True)
    return rows


def l2norm(x: Array, axis: int) -> Array:
    """Divide by the Euclidean norm along `axis`, or by 1e-12 where the norm is smaller."""
    length = np.sqrt((x**2).sum(axis=axis, keepdims=True))
    unit: Array = x / np.maximum(length, 1e-12)
    return unit


def conv2d(kernel: Array, x: Array) -> Array:
    """Correlate `x` [C,h,w] with `kernel` [O,C,k,k], k odd; zero border, same size, no bias."""
    size = kernel.shape[-1]
    height, width = x.shape[1:]
    border = size // 2
    padded = np.pad(x, ((0, 0), (border, border), (border, border)))
    out = np.zeros((kernel.shape[0], height, width))
    for di in range(size):
        for dj in range(size):
            shifted = padded[:, di : di + height, dj : dj + width]
            out += np.einsum("oc,chw->ohw", kernel[:, :, di, dj], shifted)
    return out


def conv1x1(weights: Weights, name: str, x: Array) -> Array:
    """Apply a 1x1 convolution with bias to `x` [C,h,w]."""
    return conv2d(weights[f"{name}.weight"], x) + weights[f"{name}.bias"][:, None, None]


def transposed_conv2x2(weights: Weights, name: str, x: Array) -> Array:
    """Spread every pixel of `x` [C,h,w] over its own 2x2 square: [O,2h,2w], kernel [C,O,2,2]."""
    kernel = weights[f"{name}.weight"]
    out = np.empty((kernel.shape[1], 2 * x.shape[1], 2 * x.shape[2]))
    for a in range(2):
        for b in range(2):
            out[:, a::2, b::2] = np.einsum("co,chw->ohw", kernel[:, :, a, b], x)
    return out + weights[f"{name}.bias"][:, None, None]


def pixels_from_map(x: Array) -> Array:
    """Return `x` [C,h,w] as [h*w,C], pixels row by row."""
    return x.reshape(x.shape[0], -1).T


def map_from_pixels(x: Array, shape: tuple[int, ...]) -> Array:
    """Return `x` [h*w,C] as [C,h,w], where `shape` ends in (h, w)."""
    return x.T.reshape(-1, *shape[-2:])
