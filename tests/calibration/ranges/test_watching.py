"""What watchers see, and which layers are refused."""

import pytest
import torch
from torch import nn

from refsam_calibration.ranges.histogram import Histogram
from refsam_calibration.ranges.watching import NUM_ROWS, ChannelWatcher, watching
from refsam_trt.errors import CalibrationError


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, is_short: bool = False) -> torch.Tensor:
        x = self.first(x)
        return x if is_short else self.second(x)


def test_inputs_are_seen_while_the_block_runs_and_not_after():
    model, watcher = TwoLayers(), Histogram()
    x = torch.tensor([[1.0, -2.0, 3.0]])
    with torch.no_grad():
        with watching(model, {"second": watcher}):
            model(x)
            model(2 * x)
        model(1000 * x)
        seen = [model.first(x), model.first(2 * x)]
    assert watcher.amax == float(torch.cat(seen).abs().max())
    assert int(watcher.counts.sum()) == 8


def test_a_layer_that_never_fires_is_refused_by_name():
    model = TwoLayers()
    with (
        pytest.raises(CalibrationError, match=r"^second: never called while the clips ran"),
        watching(model, {"first": Histogram(), "second": Histogram()}),
    ):
        model(torch.ones(1, 3), is_short=True)
    assert not model.first._forward_pre_hooks
    assert not model.second._forward_pre_hooks


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_an_input_that_is_not_finite_is_refused_by_name(bad):
    model = TwoLayers()
    with (
        pytest.raises(CalibrationError, match=r"^first: 1 of 6 values of its input are NaN or inf"),
        watching(model, {"first": Histogram()}),
    ):
        model(torch.tensor([[1.0, bad, 2.0], [1.0, 1.0, 2.0]]))
    assert not model.first._forward_pre_hooks


def test_sums_that_overflow_are_no_infinities():
    model, watcher = TwoLayers(), Histogram()
    with watching(model, {"first": watcher}):
        model(torch.full((1, 3), 3e38))
    assert watcher.amax == pytest.approx(3e38)


def test_an_input_that_is_always_zero_is_refused_by_name():
    with (
        pytest.raises(CalibrationError, match=r"^first: its input was zero in every frame"),
        watching(model := TwoLayers(), {"first": Histogram()}),
    ):
        model(torch.zeros(2, 3))


def test_channels_and_a_fair_sample_of_rows_are_kept():
    watcher = ChannelWatcher(2, seed=0)
    numbers = torch.arange(40_000.0)
    for part in torch.stack([numbers, -2 * numbers], 1).reshape(40, 10, 100, 2):
        watcher.see(part)
    assert watcher.channel_amax.tolist() == [39_999.0, 79_998.0]
    assert watcher.rows.shape == (NUM_ROWS, 2)
    drawn = watcher.rows[:, 0]
    assert torch.equal(watcher.rows[:, 1], -2 * drawn)
    assert len(drawn.unique()) == NUM_ROWS
    # Each fifth of the stream has a fifth of the sample: 102, standard deviation 9.
    shares = torch.histc(drawn, 5, 0, 40_000)
    assert (shares - NUM_ROWS / 5).abs().max() < 40
    within_calls = torch.histc(drawn % 1000, 5, 0, 1000)
    assert (within_calls - NUM_ROWS / 5).abs().max() < 40


def test_fewer_rows_than_the_sample_holds_are_all_kept():
    watcher = ChannelWatcher(2, seed=0)
    watcher.see(torch.tensor([[1.0, 2.0]]))
    watcher.see(torch.tensor([[3.0, -4.0], [5.0, 6.0]]))
    assert sorted(watcher.rows[:, 0].tolist()) == [1.0, 3.0, 5.0]
    assert watcher.channel_amax.tolist() == [5.0, 6.0]
