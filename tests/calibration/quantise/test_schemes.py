"""Rounding and saturation of both schemes, against ONNX itself."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from refsam_calibration.quantise.schemes import fake_quantise, fake_quantised_weight, scale_of

CODE = {"int8": "int8", "fp8": "float8e4m3fn"}


def graph(scheme: str) -> onnx.ModelProto:
    code = CODE[scheme]
    return onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> g (float[n] x, float s) => (float[n] y) '
        f"<{code} z = {{0}}> {{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }}"
    )


def values() -> np.ndarray:
    """Ties of both signs, both ends and beyond, zeros, and everything between."""
    ties = np.arange(-140, 140, dtype=np.float32) + np.float32(0.5)
    drawn = np.random.default_rng(0).normal(0, 60, 5000).astype(np.float32)
    ends = np.float32([0.0, -0.0, 127.4999, 127.5, -128.5, 448, 464, 500, 1e6, -1e6, 1e-9])
    return np.concatenate([ties, ties / 64, drawn, drawn * 8, ends])


@pytest.mark.parametrize("scheme", CODE)
@pytest.mark.parametrize("scale", [1.0, 0.037, 3.3])
def test_values_are_those_of_onnx(scheme, scale):
    x, s = values(), np.array(scale, np.float32)
    if scheme == "int8":
        session = onnxruntime.InferenceSession(
            graph(scheme).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (expected,) = session.run(None, {"x": x, "s": s})
    else:
        (expected,) = ReferenceEvaluator(graph(scheme)).run(None, {"x": x, "s": s})
    found = fake_quantise(torch.from_numpy(x), torch.from_numpy(s), scheme).numpy()
    np.testing.assert_array_equal(found, expected)


def test_ties_go_to_the_even_code_and_the_range_has_an_end():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 200.0, -200.0])
    found = fake_quantise(x, torch.tensor(1.0), "int8")
    assert found.tolist() == [0, 2, 2, 0, -2, 127, -128]


@pytest.mark.parametrize(("scheme", "largest"), [("int8", 127.0), ("fp8", 448.0)])
def test_the_largest_magnitude_has_the_largest_code(scheme, largest):
    amax = torch.tensor([0.0, 2.54, 1e-3])
    scale = scale_of(amax, scheme)
    assert scale[0] == 1.0
    torch.testing.assert_close(scale[1:] * largest, amax[1:])
    torch.testing.assert_close(fake_quantise(amax, scale, scheme), amax)


def test_weights_have_a_scale_per_output_channel():
    weight = torch.tensor([[1.0, 0.4], [100.0, -3.0], [0.0, 0.0]])
    found = fake_quantised_weight(weight, "int8")
    assert torch.equal(found[2], weight[2])
    error = (found - weight).abs().amax(1)
    assert (error <= torch.tensor([1.0, 100.0, 0.0]) / 127 / 2 * 1.0001).all()
    assert error[0] > 0
