"""The two eight-bit schemes, as ONNX's QuantizeLinear and DequantizeLinear define them.

Both are symmetric: the zero point is 0. `int8` has equal steps, `fp8` is E4M3 (float8e4m3fn).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Scheme = Literal["int8", "fp8"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
_LARGEST: dict[Scheme, float] = {"int8": 127.0, "fp8": 448.0}
_INT8_MIN, _INT8_MAX = -128, 127


def scale_of(amax: Tensor, scheme: Scheme) -> Tensor:
    """Return the scale with which `amax`, float32 of any shape, becomes the largest code.

    Where `amax` is 0, every value is 0 and any scale will do: 1.
    """
    scale = amax / _LARGEST[scheme]
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def fake_quantise(values: Tensor, scale: Tensor, scheme: Scheme) -> Tensor:
    """Return what is left of float32 values after QuantizeLinear and DequantizeLinear.

    Rounds to nearest, ties to even; what is beyond the range becomes its end (int8: -128 to 127).

    Args:
        values: float32, any shape.
        scale: float32, broadcast against `values`.
        scheme: which eight bits.
    """
    codes = values / scale
    if scheme == "int8":
        return codes.round_().clamp_(_INT8_MIN, _INT8_MAX).mul_(scale)
    # PyTorch's cast does not saturate; the clamp does not disturb it, as 448 is the largest code.
    codes = codes.clamp_(-_LARGEST["fp8"], _LARGEST["fp8"])
    return codes.to(torch.float8_e4m3fn).to(torch.float32).mul_(scale)


def fake_quantised_weight(weight: Tensor, scheme: Scheme) -> Tensor:
    """Return a weight [out, in] quantised with one scale per output channel, then dequantised."""
    return fake_quantise(weight, scale_of(weight.abs().amax(1, keepdim=True), scheme), scheme)
