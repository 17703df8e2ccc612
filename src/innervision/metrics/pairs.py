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


def sample(depth: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """Read a map at pixels of a larger or smaller image, as if it were resized to the image's size bilinearly.

    What was squashed on the way in is stretched again. Equal to `torch.nn.functional.interpolate` with
    `align_corners=False`, but that a constant map has exactly the same value everywhere.

    Args:
        depth: (h, w).
        points: (P, 2) [row, column] in pixels of the image.
        size: height and width of the image.

    Returns:
        (P,) float64, on the CPU: all of it is computed there, since not every device has float64.
    """
    depth = depth.cpu()
    shape = torch.tensor(depth.shape, dtype=torch.float64)
    place = (points.cpu() + 0.5) * shape / torch.tensor(size) - 0.5
    place = place.clamp(min=torch.zeros(2), max=shape - 1)  # (P, 2)
    low = place.floor()
    row, column = (place - low).unbind(-1)
    top, left = low.long().unbind(-1)
    bottom, right = torch.minimum(low + 1, shape - 1).long().unbind(-1)
    upper = torch.lerp(depth[top, left].double(), depth[top, right].double(), column)
    lower = torch.lerp(depth[bottom, left].double(), depth[bottom, right].double(), column)
    return torch.lerp(upper, lower, row)  # of two equal ends exactly the same
