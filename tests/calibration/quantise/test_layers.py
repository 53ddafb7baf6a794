"""Which layers may be quantised, held to the model itself and to what the exported graph runs."""

import pytest
import torch
from torch import nn

from refsam_calibration.quantise.layers import (
    KINDS,
    choose_units,
    quantisable_layers,
    select_layers,
)
from refsam_export.refsam.graphs import ImageEncoderGraph
from refsam_export.refsam.model.config import preset
from refsam_export.refsam.model.refsam import RefSam
from refsam_export.refsam.rewrites import DEFAULT_REWRITES
from refsam_trt.errors import UsageError

TINY, NANO = preset("tiny"), preset("nano")


@pytest.fixture(scope="module")
def tiny() -> RefSam:
    return RefSam(TINY, None, 32)


def test_they_are_all_linear_layers_of_the_encoder_and_no_others(tiny: RefSam):
    found = {
        name: (module.in_features, module.out_features)
        for name, module in tiny.named_modules()
        if name.startswith("image_encoder.") and isinstance(module, nn.Linear)
    }
    layers = quantisable_layers(TINY)
    assert {n: (layer.in_features, layer.out_features) for n, layer in layers.items()} == found


def test_flops_and_order_are_those_of_the_exported_graph(tiny: RefSam):
    graph = ImageEncoderGraph(tiny, "optimised", "augmented", DEFAULT_REWRITES)
    seen: dict[str, int] = {}

    def hook(name: str, module: nn.Linear):
        def count(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            seen[name] = 2 * output.numel() * module.in_features

        return count

    for name, module in graph.encoder.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(hook(f"image_encoder.{name}", module))
    graph(torch.zeros(1, 3, TINY.image_size, TINY.image_size))
    layers = quantisable_layers(TINY)
    assert TINY.grid_size % TINY.window_size, "the test needs windows with padding"
    assert {name: layer.flops for name, layer in layers.items()} == seen
    assert list(layers) == list(seen)


def test_kinds_are_told_apart():
    kinds: dict[str, set[str]] = {}
    for layer in quantisable_layers(NANO).values():
        kinds.setdefault(layer.kind, set()).add(layer.name.split(".", 3)[3])
    assert kinds == {
        "qkv": {"attn.qkv"},
        "proj": {"attn.proj"},
        "lin1": {"mlp.lin1"},
        "lin2": {"mlp.lin2"},
        "adapter": {
            f"{adapter}.{layer}"
            for adapter in ("Space_Adapter", "MLP_Adapter")
            for layer in ("D_fc1", "D_fc2")
        },
    }
    assert set(kinds) == set(KINDS)


def test_shares_are_those_of_the_flops():
    # Per token 3 D^2 of qkv; D^2, 4 D^2 and 4 D^2 beside it; D^2 of adapters in every second block.
    assert sum(unit.share for unit in choose_units(NANO, ["qkv"])) == pytest.approx(3 / 12.5)


def test_selected_layers_keep_the_order_of_the_model():
    names = ["image_encoder.blocks.5.mlp.lin2", "image_encoder.blocks.0.attn.qkv"]
    assert list(select_layers(NANO, names)) == names[::-1]


def test_a_layer_of_another_model_is_refused_by_name():
    names = [*quantisable_layers(NANO), "image_encoder.blocks.9.attn.qkv"]
    with pytest.raises(UsageError) as error:
        select_layers(NANO, names)
    assert str(error.value) == (
        f"image_encoder.blocks.9.attn.qkv: no layer of nano that can be quantised (1 of "
        f"{len(names)} names are none); names are like image_encoder.blocks.0.attn.qkv, and ranges "
        "belong to the model that they were measured on: calibrate this one"
    )
