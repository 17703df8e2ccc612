"""Ctrl-C and SIGTERM, which stop long work at a place from which it can be resumed."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from tqdm.auto import tqdm

from innervision.errors import InnerVisionError


class Stopped(InnerVisionError):
    """Training was asked to stop and has saved its state."""


@dataclass
class StopRequest:
    """Whether the user asked to stop."""

    asked: bool = False


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into `asked = True`; a second one acts as usual."""
    stop = StopRequest()
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        tqdm.write("stopping after this step (again to stop at once)")
        signal.signal(number, before[number])

    try:
        for wanted in (signal.SIGINT, signal.SIGTERM):
            before[wanted] = signal.signal(wanted, ask)
    except ValueError:  # not in the main thread, where signals do not arrive
        pass
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
