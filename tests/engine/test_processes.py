"""Processes that share work: what they say to each other, and that all end when one does."""

import socket

import pytest

from innervision.engine.processes import Rank, join_processes
from process_runs import come, compare, fail, stop, talk, wait_long
from together import run_together


def test_what_processes_say_to_each_other() -> None:
    found = run_together(3, talk)
    for index, each in enumerate(found):
        assert each["first"] == "of 0"
        assert each["exchange"] == [0, 1, 2]
        assert each["sum"] == [3.0, 3.0]
        assert each["sum to 1"] == ([3, 3] if index == 1 else None)
        assert each["bring"] == ("of 1" if index == 0 else None)
        assert each["again"] == [0, -1, -2]


def test_one_process_asks_nobody() -> None:
    with join_processes() as rank:
        assert rank == Rank()
        assert rank.first(lambda: 3) == 3
        assert rank.exchange("a") == ["a"]
        assert rank.bring("a", 0) == "a"
        rank.require_alike({"lr": 1})


@pytest.mark.parametrize("who", [0, 1])
def test_an_error_of_one_ends_all_with_its_name(who: int) -> None:
    """Of the others one waits and raises it; one does something else, and is ended."""
    found = run_together(3, fail, "error", who)
    assert found[who] == "ZeroDivisionError: one of the drives\nis on fire"
    assert found[1 - who] == f"SharedError: process {who} of 3: ZeroDivisionError: one of the drives"
    assert found[2] is None


@pytest.mark.parametrize("what", ["SIGKILL", "SIGSTOP"])
def test_a_process_that_is_killed_or_stands_still_is_named(what: str) -> None:
    found = run_together(2, fail, what, 1, left_standing=[1] if what == "SIGSTOP" else [])
    assert found[0].startswith("InnerVisionError: process 1 of 2 was killed or stands still: it has given no sign of")
    assert found[1] is None


def test_the_others_end_when_the_first_one_is_killed() -> None:
    found = run_together(2, fail, "SIGKILL", 0)
    assert found[0] is None
    assert found[1].startswith("InnerVisionError: the first process of 2, or what started it, has ended")


def test_a_process_that_works_long_is_waited_for() -> None:
    assert run_together(2, wait_long) == ["slow, but alive"] * 2


def test_a_request_to_stop_reaches_all() -> None:
    assert run_together(3, stop) == ["stopped"] * 3


@pytest.mark.parametrize(("name", "here"), [("lr", "0.5"), ("code", "'abc'"), ("layers", "[1, 2]")])
def test_processes_that_differ_are_told_in_what(name: str, here: str) -> None:
    found = run_together(2, compare, name)
    for each in found:
        assert f"process 1 of 2 differs from the first one: {name} is 'other', not {here}" in each


@pytest.mark.parametrize("missing", [0, 1])
def test_a_process_that_never_comes_is_waited_for_a_while(missing: int) -> None:
    found = run_together(2, come, missing)
    assert found[missing] == "stayed away"
    said = found[1 - missing]
    assert said.startswith("InnerVisionError: the processes cannot meet at 127.0.0.1:")
    assert "see that all 2 of them were started" in said


def test_an_address_in_use_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = run_together(1, come, -1, port=taken.getsockname()[1], of=2)
    assert found[0].startswith("InnerVisionError: the processes cannot meet at 127.0.0.1:")
    assert "take another port" in found[0]
