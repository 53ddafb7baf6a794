"""Random draws that give the same values on every machine and with every numpy.

Only the raw bits of PCG64 are used: numpy promises those for ever, but not what the methods of
`Generator` make of them (NEP 19), nor that its normal or trigonometric functions round alike.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")


class Draws:
    """One stream of draws, named by a seed, an index and a key; streams are independent."""

    def __init__(self, seed: int, index: int, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence((seed, index), spawn_key=key))

    def unit(self) -> float:
        """Return a number in [0, 1) with 53 random bits."""
        return (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * self.unit()

    def below(self, limit: int) -> int:
        """Return an integer in [0, limit)."""
        return int(self.unit() * limit)

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.unit() < probability

    def pick(self, items: Sequence[T]) -> T:
        """Return one of the items, all equally likely."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return the items in random order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(len(rest))]

    def noise(self, *shape: int) -> npt.NDArray[np.uint8]:
        """Return uint8 noise of this shape, uniform over 0 to 255."""
        count = int(np.prod(shape))
        words = np.asarray(self._bits.random_raw(-(-count // 8)), dtype="<u8")
        return words.view(np.uint8)[:count].reshape(shape)
