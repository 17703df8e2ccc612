"""What one process does for all, in two threads that stand for processes."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import pytest

from innervision.engine.processes import Rank
from innervision.errors import InnerVisionError


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Rank], Any]], list[Any]]:
    """Run something as process 0 and as process 1, and give the result or the error of each."""
    mailbox: Queue[list[Any]] = Queue()

    def run(work: Callable[[Rank], Any]) -> list[Any]:
        def broadcast(values: list[Any]) -> list[Any]:
            if values != [None, None]:  # only the first process has something to tell
                mailbox.put(values)
                return values
            return mailbox.get(timeout=10)

        monkeypatch.setattr("accelerate.utils.broadcast_object_list", broadcast)

        def attempt(index: int) -> Any:
            try:
                return work(Rank(index, 2))
            except InnerVisionError as error:
                return error

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(attempt, [0, 1]))

    return run


def test_the_first_process_works_and_all_have_the_result(both: Callable) -> None:
    done = []

    def work(rank: Rank) -> list[int]:
        return rank.first(lambda: done.append(rank.index) or [7])

    assert both(work) == [[7], [7]]
    assert done == [0]


def test_an_error_of_the_first_process_stops_all_of_them(both: Callable) -> None:
    def work(rank: Rank) -> None:
        def fail() -> None:
            raise InnerVisionError("holds scores made otherwise")

        rank.first(fail)

    assert [str(error) for error in both(work)] == ["holds scores made otherwise"] * 2


def test_one_process_asks_nobody() -> None:
    assert Rank().first(lambda: 3) == 3


SCRIPT = """
import os, signal, sys, time
from innervision.engine import processes
from innervision.errors import InnerVisionError
processes.PULSE, processes.STALLED = 0.2, 3.0
rank = processes.join_processes("cpu")
rank.wait()
assert rank.first(lambda: time.sleep(5) or "slow, but alive") == "slow, but alive"
if rank.index == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
try:
    rank.wait()
except InnerVisionError as error:
    print(error, flush=True)
    os._exit(1)
"""


def test_a_process_that_stands_still_is_named_and_one_that_works_is_waited_for() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env=os.environ | shared | {"RANK": str(index), "LOCAL_RANK": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        out, err = started[0].communicate(timeout=120)
        assert started[0].returncode == 1, err[-2000:]
        assert out.startswith("process 1 of 2 stands still: it has given no sign of life for 3 s.")
    finally:
        for process in started:
            process.kill()
            process.wait()
