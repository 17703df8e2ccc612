"""Tasks spread over processes."""

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_in_processes(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """Yield the result of each task in order, computed by `workers` processes (1 = in this one).

    Ctrl-C stops after the tasks in work are done.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    # Spawned, not forked: the caller may have threads running, and a fork may inherit their locks.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_leave_interrupts_to_the_caller) as pool:
        yield from pool.map(function, tasks)


def _leave_interrupts_to_the_caller() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it goes to the whole process group
