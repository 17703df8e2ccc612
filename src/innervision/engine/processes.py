"""Which of several processes this is, as torchrun and accelerate launch start them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch


@dataclass(frozen=True)
class Rank:
    """One of `count` processes that share the work."""

    index: int = 0
    count: int = 1
    device: str | None = None
    """The device that is this process's own; None where there is one process."""
    wait: Callable[[], None] = lambda: None
    """Returns when all processes have come here."""


def join_processes(device: str | None = None) -> Rank:
    """Meet the other processes, if there are any.

    Args:
        device: "cpu" to stay off the accelerators.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Rank()
    from accelerate import PartialState

    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    # A process that has done its share waits for the slowest, which may resume more.
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=7))
    return Rank(state.process_index, state.num_processes, str(state.device), state.wait_for_everyone)
