"""How well label maps agree, from counts of pixels that add up over images.

`counts` is a matrix (K + 1, K + 1): pixels by true class (rows; the last one is void, which is left out of scores) and
by predicted class (columns; the last one is no class, which is always wrong).
"""

from typing import NamedTuple

import torch
from torch import Tensor


def predict_classes(scores: Tensor) -> Tensor:
    """Give the class of the largest score of each pixel, for scores (K, H, W): (H, W) int64.

    -1, which is no class, where one of a pixel's scores is NaN or infinite.
    """
    largest, classes = scores.max(dim=0)  # on a CPU ten times as fast as argmax, which gives the same
    return classes.where(largest.isfinite() & scores.amin(dim=0).isfinite(), -1)  # neither passes over NaN


def count_pixels(prediction: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Count pixels by true and predicted class: (K + 1, K + 1) int64.

    Whatever is none of 0…K - 1 is void in `truth`, and no class in `prediction`.
    """
    rows, columns = (
        labels.where((labels >= 0) & (labels < num_classes), num_classes)
        for labels in (truth.long().flatten(), prediction.long().flatten())
    )
    size = num_classes + 1
    return torch.bincount(rows * size + columns, minlength=size**2).view(size, size)


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
    predicted = (counts if void else known).sum(dim=0)[:-1]
    return Overlap(intersection, truth + predicted - intersection, truth)
