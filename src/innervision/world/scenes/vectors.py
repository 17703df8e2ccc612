"""Small vectors: of three numbers, or of three arrays of rays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = tuple[float, float, float]
Array = NDArray[np.float32]
Triple = Sequence[Any]  # three components, arrays or numbers


def dot(a: Vector, b: Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def scale(a: Vector, factor: float) -> Vector:
    return (a[0] * factor, a[1] * factor, a[2] * factor)


def add(a: Vector, b: Vector, factor: float) -> Vector:
    """A + factor · b."""
    return (a[0] + factor * b[0], a[1] + factor * b[1], a[2] + factor * b[2])


def inner(a: Triple, b: Triple) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
