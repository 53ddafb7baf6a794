"""A small quantised bundle, and quantisation spelled out: what Q/DQ graphs have to compute."""

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from exported import exported, once
from reference_models import image_of, model
from torch import Tensor, nn
from torch.nn import functional

from refsam_calibration.quantise.layers import quantisable_layers
from refsam_calibration.quantise.quantised_bundle import write_quantised_bundle
from refsam_export.refsam.model.refsam import RefSam
from refsam_trt.bundle.open import Bundle, open_bundle

PRESET = "tiny"
RECORD = {"ranges": {"method": "largest of one frame"}}
Round = Callable[[Tensor, Tensor], Tensor]


def largest_inputs(of: RefSam, names: list[str] | None = None) -> dict[str, float]:
    """The largest input magnitude of each layer on one frame."""
    found: dict[str, float] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
            found[name] = float(given[0].abs().max())

        return hook

    handles = [
        of.get_submodule(name).register_forward_pre_hook(watch(name))
        for name in names or quantisable_layers(of.config)
    ]
    of.image_encoder(image_of(of))
    for handle in handles:
        handle.remove()
    return {name: found[name] for name in names or quantisable_layers(of.config)}


def round_int8(x: Tensor, scale: Tensor) -> Tensor:
    return torch.clamp(torch.round(x / scale), -128, 127) * scale


def round_fp8(x: Tensor, scale: Tensor) -> Tensor:
    """Round to E4M3 by its definition: 3 bits of mantissa, exponents from -6, at most 448."""
    y = torch.clamp(x / scale, -448, 448)
    exponent = torch.floor(torch.log2(y.abs().clamp_min(2**-6)))
    step = 2 ** (exponent - 3)
    return torch.clamp(torch.round(y / step) * step, -448, 448) * scale


ROUND = {"int8": (round_int8, 127), "fp8": (round_fp8, 448)}


class RoundedLinear(nn.Module):
    """A linear layer of values that eight bits hold, computed in float32."""

    def __init__(self, linear: nn.Linear, amax: float, scheme: str) -> None:
        super().__init__()
        self.round, largest = ROUND[scheme]
        self.input_scale = torch.tensor(amax) / largest
        weight_scale = linear.weight.abs().amax(dim=1, keepdim=True) / largest
        self.weight, self.bias = self.round(linear.weight, weight_scale), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.round(x, self.input_scale), self.weight, self.bias)


def rounded(of: RefSam, ranges: Mapping[str, float], scheme: str = "int8") -> RefSam:
    """A copy of a model with these layers quantised."""
    made = copy.deepcopy(of)
    for name, amax in ranges.items():
        parent, _, child = name.rpartition(".")
        linear = made.get_submodule(name)
        setattr(made.get_submodule(parent), child, RoundedLinear(linear, amax, scheme))
    return made


@dataclass(frozen=True)
class Quantised:
    """A bundle, the one it was made from, and the ranges."""

    bundle: Bundle
    base: Bundle
    ranges: dict[str, float]


def quantised_bundle(factory, scheme: str = "int8") -> Quantised:
    """The tiny bundle with every layer quantised, one per test run: change only copies of it."""
    base = open_bundle(exported(factory, PRESET, precisions=("fp32", "fp16")))
    ranges = largest_inputs(model(PRESET))

    def write(target: Path) -> None:
        write_quantised_bundle(base, model(PRESET), ranges, scheme, RECORD, target)

    return Quantised(open_bundle(once(factory, f"{scheme}/bundle", write)), base, ranges)


def copied(bundle: Bundle, target: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(bundle.folder, target)
    return target
