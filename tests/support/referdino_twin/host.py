"""What lies between the frames: text masks (2.2) and the tracker (5.1)."""

from collections.abc import Collection

import numpy as np
from scipy.optimize import linear_sum_assignment

from referdino_twin.layers import Array


def positions_and_mask(ids: Array, special_ids: Collection[int]) -> tuple[Array, Array]:
    """Return positions [N] and mask [N, N]."""
    count = len(ids)
    mask = [[i == j for j in range(count)] for i in range(count)]
    positions = [0] * count
    previous = 0
    for c, token in enumerate(ids):
        if token not in special_ids:
            continue
        if c not in (0, count - 1):
            for i in range(previous + 1, c + 1):
                positions[i] = i - previous - 1
                for j in range(previous + 1, c + 1):
                    mask[i][j] = True
        previous = c
    return np.array(positions), np.array(mask)


def track(hs: Array, text_mem: Array, momentum: float = 0.1) -> tuple[Array, Array, Array]:
    """Return the permutations [T, slots], the memory at the end, and all assignment costs."""
    memory = hs[0]
    slots = len(memory)
    permutations, costs = [np.arange(slots)], []
    for t in range(1, len(hs)):
        cost = np.empty((slots, slots))
        for i in range(slots):
            for j in range(slots):
                norms = max(np.linalg.norm(memory[i]), 1e-12) * max(np.linalg.norm(hs[t, j]), 1e-12)
                cost[i, j] = 1 - memory[i] @ hs[t, j] / norms
        permutation = linear_sum_assignment(cost)[1]
        h = hs[t, permutation]
        c = np.array([max(h[i] @ token for token in text_mem[t]) for i in range(slots)])
        low, high = c.min(), c.max()
        c = (c - low) / (high - low) if high > low else 0 * c
        memory = (1 - momentum * c)[:, None] * memory + (momentum * c)[:, None] * h
        permutations.append(permutation)
        costs.append(cost)
    return np.stack(permutations), memory, np.array(costs)
