"""Which of two points is closer, by a depth map: the question of DA-2K (Yang et al. 2024, arXiv:2406.09414).

Depth is relative and inverse: larger = closer. A constant map decides nothing, which counts as wrong.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Verdicts(NamedTuple):
    """What a map says of P pairs."""

    right: Tensor  # (P,) bool
    tied: Tensor  # (P,) bool
    """Neither point is closer: both values are the same, or one is NaN."""


def verdicts(values: Tensor, closer: Tensor) -> Verdicts:
    """Compare the values (P, 2) of two points; `closer` (P,) says which one is closer, 1 or 2. A tie is wrong."""
    first, second = values.unbind(-1)
    right = torch.where(closer == 1, first > second, second > first)
    return Verdicts(right, ~((first > second) | (second > first)))


def sample(maps: Tensor, index: Tensor, points: Tensor, sizes: Tensor) -> Tensor:
    """Read maps at pixels of larger or smaller images, as if they were resized to the images' sizes bilinearly.

    What was squashed on the way in is stretched again. Equal to `torch.nn.functional.interpolate` with
    `align_corners=False`, but that a constant map has exactly the same value everywhere.

    Args:
        maps: (M, h, w).
        index: (P,) which map each point belongs to.
        points: (P, 2) [row, column] in pixels of the image.
        sizes: (P, 2) [height, width] of the image.

    Returns:
        (P,) float64.
    """
    size = torch.tensor(maps.shape[-2:], dtype=torch.float64, device=maps.device)
    place = ((points + 0.5) * size / sizes - 0.5).clamp(min=torch.zeros(2, device=maps.device), max=size - 1)  # (P, 2)
    low = place.floor()
    row, column = (place - low).unbind(-1)
    top, left = low.long().unbind(-1)
    bottom, right = torch.minimum(low + 1, size - 1).long().unbind(-1)

    def read(rows: Tensor, columns: Tensor) -> Tensor:
        return maps[index, rows, columns].double()

    upper = torch.lerp(read(top, left), read(top, right), column)
    lower = torch.lerp(read(bottom, left), read(bottom, right), column)
    return torch.lerp(upper, lower, row)  # of two equal ends exactly the same
