"""The tracker: which object of a frame belongs to which slot (referdino-model 5.1).

It runs on the host; a frame is a matrix of slots x slots.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refsam_trt.errors import BackendError

_MIN_NORM = 1e-12


class SlotTracker:
    """Gives the objects of each frame to the same slots, frame after frame.

    Invariant: `memory` is None before the first frame; then it holds one embedding for each slot,
    [slots, d], in which every frame so far has had its part.

    Args:
        momentum: how much of an embedding the memory takes where it fits the expression best.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.memory: NDArray[np.floating] | None = None

    def step(
        self,
        hs: NDArray[np.floating],
        text_mem: NDArray[np.floating],
        token_mask: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        """Match the objects of the next frame and remember them.

        Args:
            hs: [slots, d], the frame's objects, in the order in which it gives them.
            text_mem: [N, d], the text as this frame sees it.
            token_mask: bool [N], false for padding.

        Returns:
            int64 [slots]: the object of each slot. `hs[permutation]` is in the order of the slots.

        Raises:
            BackendError: values that are not finite; nothing was remembered.
        """
        if not (np.isfinite(hs).all() and np.isfinite(text_mem[token_mask]).all()):
            raise BackendError(
                "grounding: found values that are not finite, expected none; the graph overflowed: "
                "use a variant in fp32"
            )
        if self.memory is None:
            self.memory = hs.copy()
            return np.arange(len(hs))
        permutation = minimum_assignment(1 - cosines(self.memory, hs))
        objects = hs[permutation]
        share = self.momentum * _scaled((objects @ text_mem[token_mask].T).max(axis=1))[:, None]
        self.memory = (1 - share) * self.memory + share * objects
        return permutation


def cosines(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the cosine of every row of a [n, d] with every row of b [m, d]: [n, m]."""
    similarity: NDArray[np.floating] = _unit(a) @ _unit(b).T
    return similarity


def _unit(x: NDArray[np.floating]) -> NDArray[np.floating]:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    unit: NDArray[np.floating] = x / np.maximum(norm, _MIN_NORM)
    return unit


def _scaled(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Bring values [slots] to 0..1; all 0 where they are equal (the official code gives NaN)."""
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else np.zeros_like(values)


def minimum_assignment(cost: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the column of each row such that their costs have the smallest sum.

    The Hungarian algorithm with potentials, in n^3 steps. Rows are added one by one; each finds the
    cheapest way over columns that are taken to one that is free, and everybody on it moves on.

    Args:
        cost: [n, n], finite.

    Returns:
        int64 [n], a permutation.
    """
    size = len(cost)
    row_of = np.full(size + 1, -1)  # the last column is where the new row waits
    row_potential = np.zeros(size)
    column_potential = np.zeros(size + 1)
    for row in range(size):
        column, row_of[size] = size, row
        distance = np.full(size, np.inf)
        before = np.full(size, size)
        is_done = np.zeros(size + 1, bool)
        while row_of[column] >= 0:
            is_done[column] = True
            current = row_of[column]
            reduced = cost[current] - row_potential[current] - column_potential[:size]
            is_nearer = ~is_done[:size] & (reduced < distance)
            distance[is_nearer], before[is_nearer] = reduced[is_nearer], column
            nearest = int(np.argmin(np.where(is_done[:size], np.inf, distance)))
            delta = distance[nearest]
            row_potential[row_of[is_done]] += delta
            column_potential[is_done] -= delta
            distance[~is_done[:size]] -= delta
            column = nearest
        while column != size:
            row_of[column] = row_of[before[column]]
            column = before[column]
    permutation = np.empty(size, np.int64)
    permutation[row_of[:size]] = np.arange(size)
    return permutation
