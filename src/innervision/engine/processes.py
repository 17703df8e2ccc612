"""Which of several processes this is, as torchrun and accelerate launch start them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

from innervision.errors import InnerVisionError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Rank:
    """One of `count` processes that share the work."""

    index: int = 0
    count: int = 1
    device: str | None = None
    """The device that is this process's own; None where there is one process."""

    def first(self, work: Callable[[], Result]) -> Result:
        """Let the first process do something while the others wait, and give all of them its result.

        Raises:
            InnerVisionError: in all processes, where the first one raised it.
        """
        if self.count == 1:
            return work()
        from accelerate.utils import broadcast_object_list

        outcome: list[Any] = [None, None]
        if self.index == 0:
            try:
                outcome[0] = work()
            except InnerVisionError as error:
                outcome[1] = str(error)
        result, failure = broadcast_object_list(outcome)
        if failure is not None:
            raise InnerVisionError(failure)
        return result

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.first(lambda: None)


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
    return Rank(state.process_index, state.num_processes, str(state.device))
