"""Requests to stop."""

import os
import signal

import pytest

from innervision.engine import interrupt
from innervision.engine.interrupt import stop_signals


def test_signals_that_come_together_are_one_request_and_a_later_one_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A terminal sends Ctrl-C to torchrun and to what it has started, and torchrun passes it on."""
    ended: list[int] = []
    now = [100.0]
    monkeypatch.setattr(interrupt, "end_at_once", ended.append)
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now[0])
    with stop_signals("after this") as stop:
        assert not stop.asked
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            now[0] += 1
        assert stop.asked
        assert ended == []
        now[0] += interrupt.AGAIN
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == [128 + signal.SIGTERM]
