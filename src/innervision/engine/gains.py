"""What more images bring to exact probes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

STILL_GAINS = 0.01
"""Explained variance that the last doubling of the images must bring for more of them to be advised."""


class Gain(NamedTuple):
    """What the last doubling of the training images brought, at the layer where it brought most."""

    layer: int
    gain: float
    """In explained variance of images held out."""
    before: int
    after: int
    """Images."""
    rising: int
    """Layers that gained more than `STILL_GAINS`."""
    layers: int


def last_doubling(curves: Mapping[int, Sequence[tuple[int, float]]]) -> Gain | None:
    """Find the gain of the last doubling; None where no layer has been solved twice.

    Args:
        curves: by layer, in ascending order (images seen, explained variance of those held out).
    """
    ends = {layer: curve[-2:] for layer, curve in curves.items() if len(curve) > 1}
    if not ends:
        return None
    gains = {layer: last[1] - before[1] for layer, (before, last) in ends.items()}
    layer = max(gains, key=gains.__getitem__)
    (before, _), (after, _) = ends[layer]
    return Gain(layer, gains[layer], before, after, sum(gain > STILL_GAINS for gain in gains.values()), len(gains))
