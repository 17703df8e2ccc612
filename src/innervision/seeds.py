"""Numbers drawn from a seed, the same on every machine, whatever else the program draws."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fixed_seed(seed: int) -> Iterator[None]:
    """Draw from PyTorch's CPU generator as after `manual_seed(seed)`, and leave it as it was.

    The generators of accelerators are not touched: what is drawn here is drawn on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
