"""Sums that several processes have taken over their own images, brought together."""

from collections.abc import Mapping
from copy import deepcopy
from typing import TypeVar

from torch import Tensor

from innervision.engine.processes import Rank
from innervision.probes.moments import FeatureMoments, StateMoments

Moments = TypeVar("Moments", FeatureMoments, StateMoments)


def total_features(moments: FeatureMoments, rank: Rank) -> FeatureMoments:
    """Add up a target's sums over all processes, and leave each one's own as they are.

    Args:
        moments: of this process.
        rank: of this process.
    """
    if rank.count == 1:
        return moments
    total = deepcopy(moments)
    total.move(_common_pivot(moments, moments.images, rank))
    rank.sum([total.sums, total.squares, total.images])
    return total


def total_states(moments: StateMoments, shifts: Mapping[str, Tensor], rank: Rank, to: int) -> StateMoments:
    """Add up a layer's sums over all processes, and leave each one's own as they are.

    Args:
        moments: of this process.
        shifts: for each target its features' pivot of this process less that of their total, (N, C).
        rank: of this process.
        to: index of the process that needs the sums.
    """
    if rank.count == 1:
        return moments
    total = deepcopy(moments)
    total.move(_common_pivot(moments, moments.counts, rank), shifts)
    rank.sum([buffer for name, buffer in total.named_buffers() if name != "pivot"], to)
    return total


def _common_pivot(moments: Moments, counts: Tensor, rank: Rank) -> Tensor:
    """Give the mean of the pivots of the processes that have taken sums."""
    used = counts.any().to(moments.pivot)
    pivot = moments.pivot * used
    rank.sum([pivot, used])
    return pivot / used.clamp(min=1)
