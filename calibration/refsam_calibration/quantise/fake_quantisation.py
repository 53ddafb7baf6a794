"""Quantised layers in PyTorch: computed in float32 with values that eight bits can hold.

This is what a Q/DQ graph means (`QuantizeLinear`, `DequantizeLinear` on input and weight, then the
product in float); integer kernels agree with it up to the rounding of float sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from refsam_calibration.quantise.schemes import (
    Scheme,
    fake_quantise,
    fake_quantised_weight,
    scale_of,
)


@contextmanager
def fake_quantised(model: nn.Module, ranges: Mapping[str, float], scheme: Scheme) -> Iterator[None]:
    """Quantise the inputs and weights of linear layers while the block runs.

    Biases, and every other layer, stay as they are. Afterwards the model is bit for bit what it
    was. The model is changed in place: not for use by two threads at once.

    Args:
        model: holds the layers, float32.
        ranges: largest input magnitude to represent, by module path of the layer: per tensor.
            Weights have a scale per output channel.
        scheme: which eight bits.
    """
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in ranges}
    weights = {name: layer.weight.data for name, layer in layers.items()}
    handles = []
    try:
        for name, layer in layers.items():
            layer.weight.data = fake_quantised_weight(weights[name], scheme)
            scale = scale_of(torch.tensor(ranges[name], dtype=torch.float32), scheme)
            handles.append(layer.register_forward_pre_hook(partial(_quantise, scale, scheme)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, layer in layers.items():
            layer.weight.data = weights[name]


def _quantise(
    scale: Tensor, scheme: Scheme, module: nn.Module, arguments: tuple[Tensor]
) -> tuple[Tensor]:
    return (fake_quantise(*arguments, scale, scheme),)
