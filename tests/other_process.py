"""Another process that holds a lock."""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

from innervision.files import locked


def hold(path: Path, ready: Event) -> None:
    with locked(path):
        ready.set()
        time.sleep(60)


@contextmanager
def holding(path: Path) -> Iterator[BaseProcess]:
    """Let another process hold the lock file; it is killed in the end."""
    processes = multiprocessing.get_context("fork")
    ready = processes.Event()
    holder = processes.Process(target=hold, args=(path, ready))
    holder.start()
    try:
        assert ready.wait(30)
        yield holder
    finally:
        holder.kill()
        holder.join()
