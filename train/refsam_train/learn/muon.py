"""AdamW, with Muon for matrices: about half the images of AdamW alone for `nano` from nothing.

Muon (Jordan et al. 2024) replaces the momentum of a weight matrix by the nearest matrix whose
singular values are near 1, found by a few steps of a quintic Newton-Schulz iteration. PyTorch's own
iterates in bfloat16, which a CPU without that arithmetic does 20 times slower than float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

MATRIX: Final = "matrix"
"""Key of a parameter group: whether Muon updates it."""

# Momentum, coefficients and iterations are those of the authors' own code.
_MOMENTUM: Final = 0.95
_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
_ITERATIONS: Final = 5
# An update's root mean square as AdamW's usually is, so that both can share a schedule.
_SCALE: Final = 0.2


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose groups with `matrix` True are updated by Muon instead; those hold 2-D parameters.

    A matrix's state is its momentum, under AdamW's name `exp_avg`.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Do one step. Gradients of matrices are gone afterwards."""
        assert closure is None
        for group in self.param_groups:
            if group.get(MATRIX):
                self._matrix_step(group)
        super().step()

    def _matrix_step(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.shape, []).append(parameter)
        for shape, members in by_shape.items():
            updates = orthogonal(torch.stack([self._momentum(member) for member in members]))
            for member, update in zip(members, updates, strict=True):
                member.mul_(1.0 - group["lr"] * group["weight_decay"])
                member.add_(update, alpha=-group["lr"] * _SCALE * max(shape) ** 0.5)
                member.grad = None

    def _momentum(self, parameter: torch.nn.Parameter) -> Tensor:
        """Take the gradient into account and return Nesterov's look ahead."""
        gradient: Any = parameter.grad
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        momentum: Tensor = state["exp_avg"].lerp_(gradient, 1.0 - _MOMENTUM)
        return torch.lerp(gradient, momentum, _MOMENTUM)


def orthogonal(matrices: Tensor) -> Tensor:
    """Return, for matrices [B, M, N], ones with the same singular vectors and values near 1."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    first, third, fifth = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        square = x @ x.transpose(1, 2)
        x = torch.baddbmm(
            x, torch.baddbmm(square, square, square, beta=third, alpha=fifth), x, beta=first
        )
    return x.transpose(1, 2) if tall else x
