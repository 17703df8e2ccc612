"""How well label maps agree, from counts of pixels that add up over images.

`counts` is a matrix (K + 1, K): pixels by true class (rows; the last one is void) and by predicted class (columns).
"""

from typing import NamedTuple

import torch
from torch import Tensor


def count_pixels(prediction: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Count pixels by true and predicted class: (K + 1, K) int64. Whatever is no class in `truth` is void."""
    rows = truth.long().flatten()
    rows = torch.where((rows >= 0) & (rows < num_classes), rows, num_classes)
    cells = torch.bincount(rows * num_classes + prediction.long().flatten(), minlength=(num_classes + 1) * num_classes)
    return cells.view(num_classes + 1, num_classes)


class Overlap(NamedTuple):
    """Pixels of each class, (K,) each."""

    intersection: Tensor
    union: Tensor
    truth: Tensor


def overlap(counts: Tensor, *, void: bool = False) -> Overlap:
    """Give what intersection over union is made of; with `void`, pixels of void count as wrong predictions."""
    known = counts[:-1]
    intersection = known.diagonal()
    truth = known.sum(dim=1)
    predicted = (counts if void else known).sum(dim=0)
    return Overlap(intersection, truth + predicted - intersection, truth)
