"""SmoothQuant: channels that are large in a layer's input are made small, its weights large.

The factors are folded into the norm before the layer (arXiv 2211.10438). Here they are powers of
two, so the model computes the same bits as before: only quantisation sees a difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from refsam_calibration.quantise.schemes import (
    Scheme,
    fake_quantise,
    fake_quantised_weight,
    scale_of,
)
from refsam_calibration.ranges.clipping import Method, clipped_amax
from refsam_calibration.ranges.histogram import Histogram
from refsam_calibration.ranges.watching import ChannelWatcher

ALPHAS: tuple[float, ...] = tuple(step / 10 for step in range(11))
_READERS = {"norm1": ("attn.qkv",), "norm2": ("mlp.lin1", "MLP_Adapter.D_fc1")}
# Far beyond what outliers ask for, and within what fp16 weights of norms can take.
_MAX_EXPONENT = 8


class Smoothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one norm is smoothed with.

    alpha: how much of the difficulty goes from the input to the weights, 0 to 1; None leaves the
    norm as it is. exponents: per channel, log2 of what its input is divided by. error: relative
    squared error of the readers' outputs on the sample; unsmoothed_error: that without smoothing.
    """

    alpha: float | None
    exponents: tuple[int, ...]
    error: float
    unsmoothed_error: float


def norm_readers(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return, for every norm that can be smoothed, all the linear layers that read its output.

    By module path: norm1 of a ViT block is read by qkv, norm2 by lin1 and, where a block has
    adapters, by the first layer of the one beside the MLP.
    """
    readers: dict[str, tuple[str, ...]] = {}
    names = {name for name, _ in model.named_modules()}
    for name in sorted(names):
        block, _, last = name.rpartition(".")
        paths = [f"{block}.{path}" for path in _READERS.get(last, ())]
        if block.rpartition(".")[0] == "image_encoder.blocks":
            present = tuple(path for path in paths if path in names)
            if present:
                readers[name] = present
    return readers


def choose_smoothing(
    halves: Sequence[ChannelWatcher],
    weights: Sequence[Tensor],
    alphas: Sequence[float],
    *,
    method: Method,
    scheme: Scheme,
    percentile: float = 99.99,
) -> Smoothing:
    """Search the alpha with the least output error; none at all is a candidate.

    What one half of the clips says is tried on rows of the other: smoothing levels the channels to
    what was seen, so that whatever is larger elsewhere is clipped.

    Args:
        halves: two watchers of the input that all the weights read, each of half the clips; one and
            the same where there is only one clip.
        weights: float32 [out, in], of all quantised readers.
        alphas: to try.
        method: how the range will be chosen.
        scheme: what for.
        percentile: of that method.
    """
    amax = torch.maximum(halves[0].channel_amax, halves[1].channel_amax)
    weight_amax = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)

    def error_with(alpha: float | None) -> float:
        lost, total = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for seen, other in (halves, halves[::-1]):
            exponents = smoothing_exponents(seen.channel_amax, weight_amax, alpha)
            scale = _scale_after(seen, exponents, method, scheme, percentile)
            pair = _output_errors(other.rows, weights, exponents, scale, scheme)
            lost, total = lost + pair[0], total + pair[1]
        return float(lost / total) if total else 0.0

    unsmoothed = error_with(None)
    best = Smoothing(None, (0,) * len(amax), unsmoothed, unsmoothed)
    for alpha in alphas:
        error = error_with(alpha)
        if error < best.error:
            exponents = smoothing_exponents(amax, weight_amax, alpha)
            best = Smoothing(alpha, tuple(exponents.tolist()), error, unsmoothed)
    return best


def _scale_after(
    seen: ChannelWatcher, exponents: Tensor, method: Method, scheme: Scheme, percentile: float
) -> Tensor:
    """Return the scale of the smoothed input as the range of this half of the clips has it."""
    amax = float(torch.ldexp(seen.channel_amax, -exponents).max())
    if method != "minmax":
        histogram = Histogram()
        histogram.see(torch.ldexp(seen.rows, -exponents))
        amax = clipped_amax(histogram, method, scheme, percentile)
    return scale_of(torch.tensor(amax), scheme)


def _output_errors(
    rows: Tensor, weights: Sequence[Tensor], exponents: Tensor, scale: Tensor, scheme: Scheme
) -> tuple[Tensor, Tensor]:
    """Return the squared errors of all outputs on some rows, and the squared outputs, summed."""
    quantised = fake_quantise(torch.ldexp(rows, -exponents), scale, scheme)
    lost, total = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for weight in weights:
        expected = rows @ weight.T
        outputs = quantised @ fake_quantised_weight(torch.ldexp(weight, exponents), scheme).T
        lost += (outputs - expected).double().square().sum()
        total += expected.double().square().sum()
    return lost, total


def smoothing_exponents(amax: Tensor, weight_amax: Tensor, alpha: float | None) -> Tensor:
    """Return log2 of SmoothQuant's factors amax^alpha / weight_amax^(1 - alpha), rounded.

    Centred, as only their ratios matter; 0 for channels that are never used.

    Args:
        amax: largest input per channel, float32 [in].
        weight_amax: largest weight per input channel, float32 [in].
        alpha: 0 to 1; None gives zeros.
    """
    if alpha is None:
        return torch.zeros(len(amax), dtype=torch.int32)
    used = (amax > 0) & (weight_amax > 0)
    one = torch.ones(())
    logs = alpha * torch.log2(torch.where(used, amax, one))
    logs = logs - (1.0 - alpha) * torch.log2(torch.where(used, weight_amax, one))
    logs = logs - logs[used].mean() if bool(used.any()) else logs
    rounded = logs.round().clamp(-_MAX_EXPONENT, _MAX_EXPONENT)
    return torch.where(used, rounded, torch.zeros(())).to(torch.int32)


def fold_smoothing(model: nn.Module, exponents: Mapping[str, Sequence[int]]) -> None:
    """Divide the outputs of norms per channel and multiply the weights that read them, in place.

    Args:
        model: float32; what it computes stays the same, bit for bit.
        exponents: per norm, by module path: log2 of the divisor of each channel.
    """
    readers = norm_readers(model)
    for norm_name, powers in exponents.items():
        power = torch.tensor(powers, dtype=torch.int32)
        norm: Any = model.get_submodule(norm_name)
        norm.weight.data = torch.ldexp(norm.weight.data, -power)
        norm.bias.data = torch.ldexp(norm.bias.data, -power)
        for reader in readers[norm_name]:
            layer: Any = model.get_submodule(reader)
            layer.weight.data = torch.ldexp(layer.weight.data, power)
