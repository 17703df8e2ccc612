"""Work on what strangers wrote, in a process of its own that is ended when it takes too long or too much memory."""

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from innervision.errors import out_of_memory

Work = Callable[[], dict[str, Any]]
"""Gives what JSON can hold."""


def run_limited(work: Work, seconds: float, memory: int) -> dict[str, Any]:
    """Run `work` in a fork of this process, and end it at the limits.

    Where processes cannot be forked safely, which is everywhere but on Linux, it runs in this one without limits.

    Args:
        work: raises nothing but what says that memory ran out.
        seconds: that it may take.
        memory: bytes that it may take beside what this process holds.

    Returns:
        What it returns, or under `error` in a few words which limit it met.
    """
    if sys.platform != "linux":
        return work()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _work(work, memory, writing)
    os.close(writing)
    try:
        answer = _read_line(reading, time.monotonic() + seconds)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if answer is None:
        return {"error": f"it has not ended after {seconds:.0f} s"}
    return json.loads(answer) if answer else {"error": "the process that ran it was ended, as when memory runs out"}


def _work(work: Work, memory: int, writing: int) -> None:
    """Do the work in the child, which never returns."""
    try:
        import resource  # not on Windows

        torch.set_num_threads(1)  # threads of the parent did not come along, and would be waited for
        with open("/proc/self/statm") as file:
            allowed = int(file.read().split()[0]) * resource.getpagesize() + memory
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        allowed = allowed if hard == resource.RLIM_INFINITY else min(allowed, hard)
        resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))
        try:
            found = work()
        except Exception as error:
            if not out_of_memory(error):
                raise
            found = {"error": f"it takes more than {memory >> 20} MiB of memory"}
        with os.fdopen(writing, "w", encoding="utf-8") as pipe:
            pipe.write(json.dumps(found) + "\n")
    finally:
        os._exit(0)


def _read_line(file: int, deadline: float) -> bytes | None:
    """Read until a line break; nothing where the other end closes before, None where it is not there in time."""
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        if not (part := os.read(file, select.PIPE_BUF)):
            return b""
        line += part
    return line
