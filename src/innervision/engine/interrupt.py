"""Ctrl-C and other requests to stop, which end long work at a place from which it can be resumed."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import active_children
from types import FrameType
from typing import Any

from innervision.errors import SharedError
from innervision.terminal import tell

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Names of the signals that ask to stop: Ctrl-C, `kill` and schedulers, a terminal that is closed."""


AGAIN = 3.0
"""Seconds in which further signals are the same request: a terminal and what started this process may both send one."""


class Stopped(SharedError):
    """Work was asked to stop, and what was done is saved."""


@dataclass
class StopRequest:
    """Whether the user asked to stop."""

    asked: bool = False


@contextmanager
def stop_signals(when: str) -> Iterator[StopRequest]:
    """Turn the first signal to stop into `asked = True`; another one, later, ends the process at once.

    Args:
        when: the work will stop, for the line that says so.
    """
    stop = StopRequest()
    before: dict[int, Any] = {}
    first: list[float] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if first:
            if time.monotonic() - first[0] > AGAIN:
                end_at_once(128 + number)
            return
        first.append(time.monotonic())
        stop.asked = True
        with suppress(OSError):  # the terminal may be gone
            tell(f"stopping {when} (again to stop at once)")

    try:
        for name in SIGNALS:
            if number := getattr(signal, name, None):  # Windows has no SIGHUP
                before[number] = signal.signal(number, ask)
    except ValueError:  # not in the main thread, where signals do not arrive
        pass
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_at_once(status: int) -> None:
    """End this process and those that it has started, whatever they are doing."""
    for child in active_children():
        child.kill()
    os._exit(status)
