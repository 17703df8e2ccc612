"""What processes do together in tests, and what happens in one of them."""

import os
import signal
import time
from typing import Any

import torch

from innervision.engine import processes
from innervision.engine.interrupt import Stopped, StopRequest
from innervision.engine.processes import join_processes


def hurry() -> None:
    """Let what is waited for come within seconds."""
    processes.PULSE, processes.STALLED, processes.GRACE, processes.ARRIVAL = 0.2, 3.0, 1.0, 3.0


def talk(index: int) -> dict[str, Any]:
    """Use all that processes can say to each other."""
    hurry()
    with join_processes("cpu") as rank:
        everywhere, somewhere = torch.tensor([1.0, index]), torch.tensor([1, index])
        rank.sum([everywhere])
        rank.sum([somewhere], to=1)
        done = {
            "first": rank.first(lambda: f"of {index}"),
            "exchange": rank.exchange(index),
            "sum": everywhere.tolist(),
            "sum to 1": somewhere.tolist() if index == 1 else None,
            "bring": rank.bring(f"of {index}", 1),
        }
    with join_processes("cpu") as rank:  # once more
        return done | {"again": rank.exchange(-index)}


def fail(index: int, what: str, who: int) -> str:
    """Let something happen to one process while others wait for it, or work."""
    hurry()
    with join_processes("cpu") as rank:
        rank.exchange(0)
        if index == who:
            if what == "error":
                raise ZeroDivisionError("one of the drives\nis on fire")
            os.kill(os.getpid(), getattr(signal, what))
        if index == 2:
            time.sleep(100)
        rank.exchange(0)
    return "done"


def wait_long(index: int) -> str:
    """Let the first process work for longer than one may stand still."""
    hurry()
    with join_processes("cpu") as rank:
        return rank.first(lambda: time.sleep(5) or "slow, but alive")


def stop(index: int) -> str:
    """Ask one process to stop."""
    hurry()
    request = StopRequest(asked=index == 1)
    try:
        with join_processes("cpu") as rank:
            rank.spread(request)
            deadline = time.monotonic() + 10
            while not request.asked:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            raise Stopped("stopped")
    except Stopped:
        return "stopped"


def compare(index: int, differing: str) -> str:
    hurry()
    facts = {"lr": 0.5, "code": "abc", "layers": [1, 2]}
    with join_processes("cpu") as rank:
        rank.require_alike(facts | ({differing: "other"} if index == 1 else {}))
    return "alike"


def come(index: int, missing: int) -> str:
    hurry()
    if index == missing:
        return "stayed away"
    with join_processes("cpu"):
        return "met"
