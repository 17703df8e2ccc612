"""Which of several processes this is, as torchrun and accelerate launch start them."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread
from typing import Any, TypeVar

import torch
from torch import distributed

from innervision.errors import InnerVisionError

Result = TypeVar("Result")

PULSE, STALLED = 5.0, 300.0
"""Seconds between two signs of life of a process, and without one after which it is taken to stand still."""


class Pulse:
    """Tells the other processes that this one is alive, and waits for them for as long as they are.

    A process may work for hours while others wait for it. One that was stopped (SIGSTOP) or lost its machine gives no
    sign any more.
    """

    def __init__(self, store: distributed.Store, index: int, count: int) -> None:
        """Begin to give signs of life through a store that all processes share."""
        self.store = store
        self.index = index
        self.count = count
        self.waits = 0
        Thread(target=self._beat, daemon=True).start()

    def wait(self, late: Sequence[int]) -> None:
        """Return when the processes `late`, and this one, have come to this call; all make the same calls in order.

        Raises:
            InnerVisionError: naming a process that stands still.
        """
        self.waits += 1
        self.store.set(f"here/{self.waits}/{self.index}", "")
        seen = {index: ("", time.monotonic()) for index in late}
        while late := [index for index in late if not self.store.check([f"here/{self.waits}/{index}"])]:
            for index in late:
                key = f"pulse/{index}"
                beat = self.store.get(key).decode() if self.store.check([key]) else ""
                if beat != seen[index][0]:
                    seen[index] = beat, time.monotonic()
                elif time.monotonic() - seen[index][1] > STALLED:
                    raise InnerVisionError(
                        f"process {index} of {self.count} stands still: it has given no sign of life for {STALLED:.0f} "
                        "s. End all of them and call again: only what is left will be done"
                    )
            time.sleep(min(0.05, PULSE))

    def _beat(self) -> None:
        beat = 0
        with suppress(RuntimeError):  # the store ends with the last process
            while True:
                self.store.set(f"pulse/{self.index}", str(beat))
                beat += 1
                time.sleep(PULSE)


@dataclass(frozen=True)
class Rank:
    """One of `count` processes that share the work."""

    index: int = 0
    count: int = 1
    device: str | None = None
    """The device that is this process's own; None where there is one process."""
    pulse: Pulse | None = None
    """Waits for the others, where there are some."""

    def first(self, work: Callable[[], Result]) -> Result:
        """Let the first process do something while the others wait, and give all of them its result.

        Raises:
            InnerVisionError: in all processes, where the first one raised it, or in the others, where it stands still.
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
        if self.pulse:
            self.pulse.wait([0])
        result, failure = broadcast_object_list(outcome)
        if failure is not None:
            raise InnerVisionError(failure)
        return result

    def wait(self) -> None:
        """Return when all processes have come here.

        Raises:
            InnerVisionError: one of them stands still.
        """
        if self.pulse:
            self.pulse.wait(range(self.count))
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
    state = PartialState(cpu=on_cpu, timeout=timedelta(seconds=2 * STALLED))
    store, _, _ = next(iter(distributed.rendezvous("env://")))
    pulse = Pulse(distributed.PrefixStore("innervision", store), state.process_index, state.num_processes)
    return Rank(state.process_index, state.num_processes, str(state.device), pulse)
