"""The schedule and the moving average, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from refsam_train.learn.optimiser import MovingAverage, optimiser_of, rate_factor, set_rates
from refsam_train.recipe import Optimiser


def test_rates_warm_up_stay_and_decay() -> None:
    settings = Optimiser(warmup_steps=3, decay_steps=4)
    found = [rate_factor(step, 10, settings) for step in range(10)]
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2])
    assert [rate_factor(step, 2, Optimiser()) for step in range(2)] == [1.0, 1.0]


def test_a_factor_is_of_the_groups_own_rate_whatever_was_set_before() -> None:
    weights = {"a.weight": (nn.Parameter(torch.zeros(3, 4)), 1e-3)}
    weights["a.bias"] = (nn.Parameter(torch.zeros(3)), 1e-3)
    optimiser = optimiser_of(weights, Optimiser(learning_rate=1e-3, matrix_rate=4e-3))
    for factor in (0.5, 0.5, 1.0, 0.25):
        set_rates(optimiser, factor)
        rates = [group["lr"] for group in optimiser.param_groups]
        assert rates == pytest.approx([4e-3 * factor, 1e-3 * factor])


def test_the_average_follows_slowly_and_forgets_the_first_values() -> None:
    parameter = nn.Parameter(torch.tensor([5.0]))
    average, expected = MovingAverage({"p": parameter}, 0.5), 5.0
    for step in range(1, 15):
        with torch.no_grad():
            parameter.fill_(float(step))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert average.values["p"].item() == pytest.approx(expected, rel=1e-6)


def test_averages_are_in_place_for_a_while_only() -> None:
    parameters = {"p": nn.Parameter(torch.tensor([1.0]))}
    average = MovingAverage(parameters, 0.5)
    with torch.no_grad():
        parameters["p"].fill_(3.0)
    with average.in_place(parameters):
        assert parameters["p"].item() == 1.0
    assert (parameters["p"].item(), average.values["p"].item()) == (3.0, 1.0)
