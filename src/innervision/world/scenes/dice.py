"""Random draws that are the same everywhere."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from innervision.world.scenes.vectors import Array

T = TypeVar("T")


class Dice:
    """Random draws that are the same in every release of NumPy and on every machine."""

    def __init__(self, *key: int) -> None:
        self._raw = np.random.PCG64(np.random.SeedSequence(key)).random_raw

    def unit(self) -> float:
        """A number in [0, 1)."""
        return (self._raw() >> 11) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.unit() * len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        items = list(items)
        for last in range(len(items) - 1, 0, -1):
            other = int(self.unit() * (last + 1))
            items[last], items[other] = items[other], items[last]
        return items

    def turn(self, limit: float) -> tuple[float, float]:
        """Cosine and sine of an angle of at most 2·atan(limit) to either side, without calling either."""
        half = self.between(-limit, limit)
        return (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)

    def table(self, side: int) -> Array:
        """A square table of numbers in [0, 1)."""
        return (self._raw(side * side) >> 40).astype(np.float32).reshape(side, side) * np.float32(2.0**-24)
