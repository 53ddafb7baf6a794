"""AdamW and Muon over the trained parameters, the schedule, the moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from refsam_train.learn.groups import AUXILIARY
from refsam_train.learn.muon import MATRIX, MuonAdamW
from refsam_train.recipe import Optimiser

_BASE_RATE = "base_rate"
# Rows of tables are looked up one by one, so nothing maps through them as through a matrix.
_TABLES = ("mask_tokens", "iou_token", "embed_tokens", "shared", "relative_attention_bias")


def rate_factor(step: int, num_steps: int, settings: Optimiser) -> float:
    """Return what the rates are multiplied with in a step: warm-up, constant, linear decay to 0."""
    warm = (step + 1) / (settings.warmup_steps + 1)
    left = (num_steps - step) / (settings.decay_steps + 1)
    return min(warm, 1.0, left)


def optimiser_of(
    parameters: Mapping[str, tuple[nn.Parameter, float]], settings: Optimiser
) -> torch.optim.AdamW:
    """Return AdamW with one group per learning rate; like the paper's it decays every parameter.

    With a `matrix_rate`, weight matrices are in a group of their own, which Muon updates.
    """
    by_rate: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, (parameter, rate) in parameters.items():
        matrix = settings.matrix_rate > 0.0 and is_matrix(name, parameter)
        key = (settings.matrix_rate if matrix else rate, matrix)
        by_rate.setdefault(key, []).append(parameter)
    groups = [
        {"params": members, "lr": rate, _BASE_RATE: rate, MATRIX: matrix}
        for (rate, matrix), members in by_rate.items()
    ]
    return MuonAdamW(groups, betas=settings.betas, weight_decay=settings.weight_decay, fused=True)


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter maps vectors to vectors: no table, no bias, no convolution."""
    return (
        parameter.ndim == 2
        and name.endswith(".weight")
        and not name.startswith(AUXILIARY)
        and not any(table in name for table in _TABLES)
    )


def set_rates(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its own."""
    for group in optimiser.param_groups:
        group["lr"] = group[_BASE_RATE] * factor


class MovingAverage:
    """Exponential moving average of parameters, float32, on their device.

    The decay grows with the number of updates up to its value, so that the first values are
    forgotten.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters = list(parameters.values())
        self._decay = decay
        self.values = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the parameters after this step into account."""
        # TensorFlow's schedule: else the initial values would stay for some 1 / (1 - decay) steps.
        decay = min(self._decay, (1.0 + step) / (10.0 + step))
        current: list[Tensor] = [p.detach() for p in self._parameters]
        torch._foreach_lerp_(list(self.values.values()), current, 1.0 - decay)

    @contextmanager
    def in_place(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Let the parameters have their averages for a while; without averages nothing changes."""
        kept = {name: parameters[name].detach().clone() for name in self.values}
        try:
            _copy(self.values, parameters)
            yield
        finally:
            _copy(kept, parameters)


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)
