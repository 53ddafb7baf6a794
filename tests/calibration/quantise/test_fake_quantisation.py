"""Quantised layers in PyTorch against integers computed by hand; the model is left as it was."""

import numpy as np
import pytest
import torch
from calibration_model import BLOCKS, images, own_model

from refsam_calibration.quantise.fake_quantisation import fake_quantised

NAME = f"{BLOCKS}.2.mlp.lin1"


def by_integers(layer: torch.nn.Linear, x: torch.Tensor, amax: float) -> np.ndarray:
    """Return what an int8 kernel gives: integer sums, scaled once, in float64."""
    weight, x64 = layer.weight.double().numpy(), x.double().numpy()
    weight_scale = np.abs(weight).max(1) / 127
    scale = amax / 127
    codes = np.clip(np.rint(x64 / scale), -128, 127).astype(np.int64)
    weight_codes = np.clip(np.rint(weight / weight_scale[:, None]), -128, 127).astype(np.int64)
    sums = codes @ weight_codes.T
    return sums * scale * weight_scale + layer.bias.double().numpy()


def test_a_layer_computes_what_integers_do():
    model = own_model().model
    layer = model.get_submodule(NAME)
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    expected = by_integers(layer, x, 2.0)
    with torch.no_grad(), fake_quantised(model, {NAME: 2.0}, "int8"):
        found = layer(x).numpy()
    # Ties apart, which fp32 and float64 may round differently: one step of one code.
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()
    with torch.no_grad():
        assert np.abs(layer(x).numpy() - expected).max() > 1e-2


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_only_named_layers_change_and_nothing_stays(scheme):
    model = own_model().model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        expected = model.encode_image(images())[0]
        with fake_quantised(model, {NAME: 5.0}, scheme):
            changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
            assert changed == [f"{NAME}.weight"]
            found = model.encode_image(images())[0]
        assert 1e-5 < (found - expected).abs().max() < 0.5
        assert torch.equal(model.encode_image(images())[0], expected)
    assert not model.get_submodule(NAME)._forward_pre_hooks
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_model_is_restored_after_an_error():
    model = own_model().model
    weight = model.get_submodule(NAME).weight.clone()
    with pytest.raises(KeyboardInterrupt), fake_quantised(model, {NAME: 5.0}, "int8"):
        raise KeyboardInterrupt
    assert torch.equal(model.get_submodule(NAME).weight, weight)
    assert not model.get_submodule(NAME)._forward_pre_hooks
