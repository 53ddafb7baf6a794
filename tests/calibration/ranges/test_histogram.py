"""The histogram is that of all values at once, whatever came when."""

import numpy as np
import pytest
import torch

from refsam_calibration.ranges import histogram as module
from refsam_calibration.ranges.histogram import NUM_BINS, Histogram


def filled(*parts: torch.Tensor) -> Histogram:
    found = Histogram()
    for part in parts:
        found.see(part)
    return found


def spread_values() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(9000, generator=generator) * torch.logspace(-6, 4, 9000)


def test_counts_are_those_of_one_pass_over_all_values():
    values = spread_values()
    found = filled(values)
    assert found.amax == float(values.abs().max())
    assert found.width * NUM_BINS > found.amax >= found.width * NUM_BINS / 2
    edges = np.arange(NUM_BINS + 1, dtype=np.float64) * found.width
    expected, _ = np.histogram(values.abs().double().numpy(), edges)
    np.testing.assert_array_equal(found.counts.numpy(), expected)


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
def test_order_and_portions_make_no_difference(order):
    values = spread_values()
    whole = filled(values)
    arranged = {
        "ascending": values.abs().sort().values,
        "descending": values.abs().sort(descending=True).values,
        "shuffled": values[torch.randperm(len(values), generator=torch.Generator().manual_seed(1))],
    }[order]
    found = filled(*arranged.split(700))
    assert torch.equal(found.counts, whole.counts)
    assert int(found.counts.sum()) == 9000
    assert (found.width, found.amax) == (whole.width, whole.amax)


def test_large_inputs_are_counted_in_portions(monkeypatch):
    values = spread_values()
    whole = filled(values)
    monkeypatch.setattr(module, "_CHUNK", 1000)
    assert torch.equal(filled(values.reshape(90, 10, 10)).counts, whole.counts)


def test_zeros_before_and_between_are_in_the_first_bin():
    found = filled(torch.zeros(5))
    assert (found.amax, found.width, int(found.counts[0])) == (0.0, 0.0, 5)
    found.see(torch.tensor([0.0, 3.0]))
    assert int(found.counts[0]) == 6
    assert int(found.counts.sum()) == 7


def test_a_range_that_grows_beyond_all_bins_keeps_every_value():
    found = filled(torch.full((4,), 1e-30), torch.tensor([1e30]))
    assert int(found.counts[0]) == 4
    assert int(found.counts.sum()) == 5


def test_a_power_of_two_has_a_bin():
    found = filled(torch.tensor([4.0]))
    assert found.width * NUM_BINS == 8.0
    assert int(found.counts[NUM_BINS // 2]) == 1
