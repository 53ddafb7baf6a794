"""One step of the loop and its evaluation, with a loss of known gradient in the model's place."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_training import fresh_model, read_tiny, source_of

from refsam_train.data.batches import Place
from refsam_train.learn.forward import ClipResult
from refsam_train.run.loop import RunOptions, Trainer

NAME = "dense_conv.bias"  # 256 elements: gradients that are all g have the norm 16 g


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = tmp_path_factory.mktemp("run")
    recipe = read_tiny(folder, clip_norm="100.0", warmup_steps="0")
    return Trainer(recipe, fresh_model(recipe), source_of(recipe), RunOptions(folder))


def test_gradients_are_means_over_micro_batches_and_clipped(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameter, none, gradients = trainer.state.parameters[NAME], torch.zeros(()), []

    def training(batch: Any) -> ClipResult:
        return ClipResult(parameter.sum() * batch.gradient, *[none] * 6)

    def noted() -> None:
        assert parameter.grad is not None
        gradients.append(parameter.grad.unique().tolist())

    monkeypatch.setattr(trainer, "_training", training)
    monkeypatch.setattr(trainer.state.optimiser, "step", noted)
    for pair in ((3.0, 5.0), (30.0, 50.0)):
        batches: Any = [SimpleNamespace(gradient=gradient) for gradient in pair]
        for batch in batches:
            batch.to = lambda device, batch=batch: batch
        trainer._one_step(batches)
    assert parameter.grad is None
    assert gradients == [[pytest.approx(4.0)], [pytest.approx(100.0 / 16, rel=1e-4)]]


def test_every_step_of_every_process_draws_for_itself(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws: list[float] = []

    def training(batch: Any) -> ClipResult:
        draws.append(torch.rand(()).item())
        return ClipResult(trainer.state.parameters[NAME].sum(), *[torch.zeros(())] * 6)

    monkeypatch.setattr(trainer, "_training", training)
    monkeypatch.setattr(trainer.state.optimiser, "step", lambda: None)
    batches: Any = [SimpleNamespace(to=lambda device: None)]
    for rank in (0, 1, 0):
        options = RunOptions(Path(), place=Place(rank, 2))
        monkeypatch.setattr(trainer, "_options", options)
        for step in (5, 6):
            monkeypatch.setattr(trainer, "step", step)
            trainer._one_step(batches)
    assert len(set(draws[:4])) == 4
    assert draws[4:] == draws[:2]


def test_the_average_is_what_is_evaluated(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def scores(model: Any, device: torch.device) -> dict[str, float]:
        seen.extend(model.dense_conv.bias.unique().tolist())
        return {"all": 0.5}

    monkeypatch.setattr(trainer, "_tuning", SimpleNamespace(scores=scores))
    trainer.state.average[NAME].fill_(7.0)
    before = trainer.state.parameters[NAME].detach().clone()
    trainer._evaluate()
    assert seen == [7.0]
    assert torch.equal(trainer.state.parameters[NAME], before)


def test_shares_of_the_recipe_reach_the_training(tmp_path: Path) -> None:
    shares = "0.4\nmuted_share = 0.25\nmisled_share = 0.5"
    recipe = read_tiny(tmp_path, single_frame_share=shares)
    trainer = Trainer(recipe, fresh_model(recipe), source_of(recipe), RunOptions(tmp_path))
    training = trainer._training_module()
    assert (training._muted_share, training._misled_share) == (0.25, 0.5)
