"""The steps of a training: which images come in which, and which of them are this process's."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from innervision.engine.processes import Rank


@dataclass(frozen=True)
class Step:
    """One step of all processes."""

    size: int
    """Images of all of them together."""
    batches: list[list[int]]
    """This process's share: for each of its micro-batches the indices of the images. There may be none."""
    turns: int
    """Micro-batches of the process that has the most."""


def plan_steps(
    num_images: int,
    *,
    epochs: int,
    seed: int,
    batch_size: int,
    micro_batch_size: int,
    milestones: Sequence[int] = (),
    rank: Rank | None = None,
) -> list[Step]:
    """Give the steps of all epochs, in each of which each image comes up once.

    The images of a step do not depend on the number of processes: one takes the first, the next the second, and so on.

    Args:
        num_images: of the run.
        epochs: passes over them.
        seed: of their order.
        batch_size: images of a step, of all processes together.
        micro_batch_size: images that a process takes at once.
        milestones: after which numbers of images of an epoch a step ends early.
        rank: of this process.
    """
    rank = rank or Rank()
    steps = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        shuffled = torch.randperm(num_images, generator=generator).tolist()
        ends = {*range(batch_size, num_images, batch_size), *milestones, num_images}
        start = 0
        for end in sorted(ends):
            mine = shuffled[start:end][rank.index :: rank.count]
            batches = [mine[i : i + micro_batch_size] for i in range(0, len(mine), micro_batch_size)]
            steps.append(
                Step(end - start, batches, math.ceil(math.ceil((end - start) / rank.count) / micro_batch_size))
            )
            start = end
    return steps


def count_images(fractions: Iterable[float], num_images: int) -> list[int]:
    """Give after how many of the images these shares of them were seen."""
    return sorted({math.ceil(fraction * num_images) for fraction in fractions})
