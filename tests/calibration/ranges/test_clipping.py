"""Ranges that the four methods choose, compared with what the raw values say."""

from typing import get_args

import numpy as np
import pytest
import torch

from refsam_calibration.quantise.schemes import SCHEMES, fake_quantise, scale_of
from refsam_calibration.ranges.clipping import Method, clipped_amax
from refsam_calibration.ranges.histogram import Histogram


def normal(num: int = 200_000) -> torch.Tensor:
    return torch.randn(num, generator=torch.Generator().manual_seed(0))


def with_outlier() -> torch.Tensor:
    return torch.cat([normal(), torch.tensor([60.0])])


def histogram(values: torch.Tensor) -> Histogram:
    found = Histogram()
    found.see(values)
    return found


def loss(values: torch.Tensor, amax: float, scheme: str) -> float:
    scale = scale_of(torch.tensor(amax), scheme)
    return float((fake_quantise(values, scale, scheme) - values).double().square().mean())


def test_minmax_keeps_everything():
    assert clipped_amax(histogram(with_outlier()), "minmax", "int8") == 60.0


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.99])
def test_percentile_keeps_that_share(percentile):
    values = with_outlier()
    found = histogram(values)
    expected = float(np.quantile(values.abs().numpy(), percentile / 100))
    amax = clipped_amax(found, "percentile", "int8", percentile)
    assert expected - found.width <= amax <= expected + 2 * found.width


def test_all_of_the_values_end_at_the_largest_and_not_at_a_bins_edge():
    assert clipped_amax(histogram(normal()), "percentile", "int8", 100.0) == normal().abs().max()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("values", [with_outlier(), normal().clamp_min(0) ** 3])
def test_mse_is_near_the_best_of_all_ranges(scheme, values):
    found = clipped_amax(histogram(values), "mse", scheme)
    largest = float(values.abs().max())
    best = min(loss(values, float(x), scheme) for x in largest * np.geomspace(1 / 64, 1, 200))
    assert loss(values, found, scheme) <= 1.03 * best


def test_mse_clips_what_int8_has_no_steps_for():
    values = torch.cat([normal(), torch.tensor([12.0])])
    amax = clipped_amax(histogram(values), "mse", "int8")
    assert amax < 8.0
    assert loss(values, amax, "int8") < 0.5 * loss(values, 12.0, "int8")


def test_entropy_clips_a_far_outlier_and_keeps_what_has_no_tail():
    assert 3.0 < clipped_amax(histogram(with_outlier()), "entropy", "int8") < 10.0
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    assert clipped_amax(histogram(uniform), "entropy", "int8") > 0.98


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("values", [torch.tensor([1e-20]), torch.tensor([0.0] * 9 + [3.0])])
def test_single_values_have_a_range(method, values):
    amax = clipped_amax(histogram(values), method, "int8")
    assert 0 < amax <= float(values.max())


@pytest.mark.parametrize("values", [with_outlier(), normal().abs().clamp_max(1.0)])
def test_more_zeros_do_not_move_entropys_range(values):
    zeros = torch.zeros(3_000_000)
    found = clipped_amax(histogram(torch.cat([values, zeros])), "entropy", "int8")
    assert found == clipped_amax(histogram(values), "entropy", "int8")
