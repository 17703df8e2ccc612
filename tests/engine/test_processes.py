"""What one process does for all, in two threads that stand for processes."""

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
