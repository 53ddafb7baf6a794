"""The training loop: steps, log, checkpoints, evaluation."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from refsam_export.refsam.checkpoint import LoadedModel
from refsam_train.data.batches import Place, StepBatches, batches_from
from refsam_train.data.clips import Batch, ClipSource, Collator
from refsam_train.learn.activation_checkpoints import ForgetfulEncoder
from refsam_train.learn.evaluate import TuningSet
from refsam_train.learn.forward import ClipResult, ClipTraining
from refsam_train.learn.groups import trained_parameters
from refsam_train.learn.optimiser import MovingAverage, optimiser_of, rate_factor, set_rates
from refsam_train.recipe import Recipe
from refsam_train.run.checkpoints import RunState, load_checkpoint, save_checkpoint
from refsam_train.run.distributed import any_process, wrapped
from refsam_train.run.log import RunLog
from refsam_train.run.start import seeded
from refsam_trt.command.progress import Progress
from refsam_trt.errors import UsageError
from refsam_trt.run.interruption import Interruption

CHECKPOINT_NAME = "checkpoint.safetensors"
_CPU, _ALONE = torch.device("cpu"), Place()
_LOG_EVERY = 10
# So far apart that no two of seed, process and step give the same random numbers.
_SEED_STRIDE = 1 << 32
_RANK_STRIDE = 10_000_019
_LOGGED = ("loss", "dice", "focal", "iou", "cells", "shapes", "recall")


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; nothing here changes its result.

    output: folder of checkpoint and log. max_steps: stop after so many steps in all. workers:
    processes that make batches. None means the recipe's value for both.
    """

    output: Path
    max_steps: int | None = None
    workers: int | None = None
    show_progress: bool = True
    device: torch.device = _CPU
    place: Place = _ALONE


class Trainer:
    """One run. Between two steps, what the next one depends on is all in `state` and `step`."""

    def __init__(
        self, recipe: Recipe, loaded: LoadedModel, source: ClipSource, options: RunOptions
    ) -> None:
        self.recipe = recipe
        self.step = 0
        self._options = options
        self._model = loaded.model.to(options.device)
        training = self._training_module()
        trained = trained_parameters(training, recipe)
        if not trained:
            raise UsageError(f"recipe {recipe.name}: trains nothing; give rates above 0")
        parameters = {name: parameter for name, (parameter, _) in trained.items()}
        self._average = MovingAverage(parameters if recipe.average else {}, recipe.average)
        self.state = RunState(
            parameters, self._average.values, optimiser_of(trained, recipe.optimiser)
        )
        self._training = wrapped(training, options.place)
        collator = Collator(self._model.config, loaded.tokenizer)
        self._batches = StepBatches(recipe, source, collator, options.place)
        self._recent: list[list[float]] = []
        is_first = options.place.rank == 0
        self._log = RunLog(options.output, enabled=is_first)
        evaluates = is_first and recipe.data.kind == "synthetic"
        self._tuning = TuningSet(recipe.data, collator) if evaluates else None

    def _training_module(self) -> ClipTraining:
        recipe, encoder = self.recipe, None
        if recipe.activation_checkpointing:
            blocks = self._model.config.adapter_blocks
            encoder = ForgetfulEncoder(self._model.image_encoder, blocks)
        with seeded(recipe.seed):
            training = ClipTraining(
                self._model,
                recipe.loss,
                bf16=recipe.precision == "bf16",
                image_encoder=encoder,
                muted_share=recipe.data.muted_share,
                misled_share=recipe.data.misled_share,
            )
        return training.to(self._options.device)

    @property
    def checkpoint_path(self) -> Path:
        """Where the checkpoint of this run lies."""
        return self._options.output / CHECKPOINT_NAME

    def resume(self) -> None:
        """Continue where the checkpoint in the output folder was written."""
        self.step = load_checkpoint(self.checkpoint_path, self.state, digest=self.recipe.digest())
        self._log.drop_after(self.step)

    def run(self) -> None:
        """Train to the last step and save; after a signal finish the step, save, pass it on."""
        last = min(self.recipe.steps, self._options.max_steps or self.recipe.steps)
        workers = self._options.workers
        workers = self.recipe.data.workers if workers is None else workers
        batches = batches_from(self._batches, self.step, workers)
        shown = self._options.show_progress and self._options.place.rank == 0
        progress = Progress(self.recipe.name, max(last - self.step, 0), enabled=shown)
        with Interruption() as interruption, progress:
            while self.step < last and not self._is_stopped(interruption):
                progress.update(1, self._one_step(next(batches)))
                if self.step % self.recipe.evaluate_every == 0 or self.step == self.recipe.steps:
                    self._evaluate()
                if self.step % self.recipe.checkpoint_every == 0:
                    self.save()
            self.save()
            if interruption.reason is not None:
                # A new one: the one that is kept would keep this frame alive, and with it the
                # processes that make batches, which would outlive the run.
                raise type(interruption.reason)

    def _is_stopped(self, interruption: Interruption) -> bool:
        has_signal = interruption.reason is not None
        return any_process(has_signal, self._options.place, self._options.device)

    def save(self) -> None:
        """Write the checkpoint, on the first process only."""
        if self._options.place.rank == 0:
            save_checkpoint(
                self.checkpoint_path, self.state, step=self.step, digest=self.recipe.digest()
            )

    def _one_step(self, batches: list[Batch]) -> str:
        """Do one optimiser step and return what to show beside the progress bar."""
        settings, started = self.recipe.optimiser, time.monotonic()
        factor = rate_factor(self.step, self.recipe.steps, settings)
        set_rates(self.state.optimiser, factor)
        # Every process draws for itself which of its rows are muted or misled.
        first = self.recipe.seed * _SEED_STRIDE + self._options.place.rank * _RANK_STRIDE
        torch.manual_seed(first + self.step)
        results = []
        for batch in batches:
            results.append(self._training(batch.to(self._options.device)))
            (results[-1].loss / len(batches)).backward()
        # Without a limit nothing is clipped, but the log still gets the norm.
        limit = settings.clip_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self.state.parameters.values(), limit)
        self.state.optimiser.step()
        self.state.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        if self._average.values:
            self._average.update(self.step)
        self._log_means(results, norm.item(), time.monotonic() - started)
        return f"loss {results[-1].loss.item():.3f} iou {results[-1].iou.item():.3f}"

    def _log_means(self, results: list[ClipResult], norm: float, seconds: float) -> None:
        """Log the means of the last steps, now and then."""
        for result in results:
            self._recent.append([getattr(result, name).item() for name in _LOGGED])
        if self.step % _LOG_EVERY == 0:
            means = [sum(column) / len(column) for column in zip(*self._recent, strict=True)]
            self._recent.clear()
            extra = {"norm": norm, "step_seconds": seconds, "time": int(time.time())}
            self._log.write({"step": self.step, **dict(zip(_LOGGED, means, strict=True)), **extra})

    def _evaluate(self) -> None:
        """Log the IoU of the averaged weights on the tuning videos."""
        if self._tuning is not None:
            with self._average.in_place(self.state.parameters):
                scores = self._tuning.scores(self._model, self._options.device)
            self._log.write({"step": self.step, "tuning": scores, "time": int(time.time())})
