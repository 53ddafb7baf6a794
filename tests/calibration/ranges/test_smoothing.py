"""Smoothing changes no bit of what the model computes, and much of what quantisation loses."""

import pytest
import torch
from calibration_model import BLOCKS, images, own_model

from refsam_calibration.ranges.smoothing import (
    ALPHAS,
    choose_smoothing,
    fold_smoothing,
    norm_readers,
    smoothing_exponents,
)
from refsam_calibration.ranges.watching import ChannelWatcher

WIDTH = 64


def exponents(seed: int) -> list[int]:
    return torch.randint(-5, 6, (WIDTH,), generator=torch.Generator().manual_seed(seed)).tolist()


def outputs(model, seed=0) -> list[torch.Tensor]:
    with torch.no_grad():
        embedding, features = model.encode_image(images(seed))
    return [embedding, features]


def test_readers_of_norms_are_all_the_layers_that_see_their_output():
    readers = norm_readers(own_model().model)
    assert len(readers) == 16
    assert readers[f"{BLOCKS}.0.norm1"] == (f"{BLOCKS}.0.attn.qkv",)
    assert readers[f"{BLOCKS}.3.norm2"] == (f"{BLOCKS}.3.mlp.lin1",)
    both = (f"{BLOCKS}.4.mlp.lin1", f"{BLOCKS}.4.MLP_Adapter.D_fc1")
    assert readers[f"{BLOCKS}.4.norm2"] == both


def test_folding_changes_no_bit_of_the_outputs():
    model = own_model().model
    before = outputs(model)
    folded = {name: exponents(n) for n, name in enumerate(norm_readers(model))}
    weight = model.get_submodule(f"{BLOCKS}.6.mlp.lin1").weight.clone()
    fold_smoothing(model, folded)
    for expected, found in zip(before, outputs(model), strict=True):
        assert torch.equal(found, expected)
    changed = model.get_submodule(f"{BLOCKS}.6.mlp.lin1").weight
    power = torch.tensor(folded[f"{BLOCKS}.6.norm2"], dtype=torch.float32)
    assert torch.equal(changed, weight * torch.exp2(power))


def test_a_reader_that_is_left_out_would_be_noticed():
    """The adapter beside the MLP reads norm2 too: without it, folding would not be exact."""
    model = own_model().model
    before = outputs(model)
    reader = model.get_submodule(f"{BLOCKS}.6.MLP_Adapter.D_fc1")
    untouched = reader.weight.data.clone()
    fold_smoothing(model, {f"{BLOCKS}.6.norm2": exponents(1)})
    reader.weight.data = untouched
    assert (outputs(model)[0] - before[0]).abs().max() > 1e-3 * before[0].abs().max()


def outlier_layer() -> tuple[list[ChannelWatcher], torch.Tensor]:
    """Rows with three channels a hundred times as large, read by weights that are small there."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4000, WIDTH, generator=generator)
    weight = torch.randn(48, WIDTH, generator=generator)
    rows[:, :3] *= 100.0
    weight[:, :3] *= 0.02
    return [seen(part) for part in rows.split(2000)], weight


def seen(rows: torch.Tensor) -> ChannelWatcher:
    watcher = ChannelWatcher(WIDTH, seed=0)
    watcher.see(rows)
    return watcher


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_outlier_channels_are_what_it_is_for(method):
    halves, weight = outlier_layer()
    found = choose_smoothing(halves, [weight], ALPHAS, method=method, scheme="int8")
    assert found.alpha is not None
    assert found.error < 0.1 * found.unsmoothed_error
    assert min(found.exponents[:3]) > max(found.exponents[3:])
    alone = [
        choose_smoothing(halves, [weight], [a], method=method, scheme="int8").error for a in ALPHAS
    ]
    assert found.error == min(alone)


def test_a_layer_without_outliers_stays_as_it_is_if_nothing_is_better():
    watcher, weight = seen(torch.ones(8, WIDTH)), torch.ones(4, WIDTH)
    found = choose_smoothing([watcher] * 2, [weight], ALPHAS, method="minmax", scheme="int8")
    assert found.alpha is None
    assert set(found.exponents) == {0}
    assert found.error == found.unsmoothed_error


def test_alpha_is_chosen_by_what_half_of_the_clips_does_for_the_other():
    """Levelled to one half, the other would be clipped; alpha 0 follows the weights alone."""
    (one, _), weight = outlier_layer()
    weight[:, 3:6] *= 0.02
    other = seen(one.rows.roll(3, dims=1))
    options = {"method": "minmax", "scheme": "int8"}
    assert choose_smoothing([one, one], [weight], ALPHAS, **options).alpha == 1.0
    assert choose_smoothing([one, other], [weight], ALPHAS, **options).alpha == 0.0


def test_exponents_are_the_papers_factors_rounded_and_centred():
    amax = torch.tensor([16.0, 1.0, 1.0, 0.0])
    weight_amax = torch.tensor([1.0, 1.0, 16.0, 2.0])
    # alpha 0.5: log2 of sqrt(16 / 1), 1, sqrt(1 / 16) is 2, 0, -2; unused channels stay.
    assert smoothing_exponents(amax, weight_amax, 0.5).tolist() == [2, 0, -2, 0]
    assert smoothing_exponents(amax, weight_amax, 1.0).tolist() == [3, -1, -1, 0]
    huge = torch.tensor([1e30, 1e-30])
    assert smoothing_exponents(huge, torch.ones(2), 1.0).tolist() == [8, -8]
