"""A command of the command line, run in a fork under limits of time and memory."""

import gc
import os
import resource
import signal
import sys
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from PIL import Image

from innervision.cli import main

SHARED = (
    "docstring_parser",
    "jsonargparse",
    "innervision.engine.evaluate",
    "innervision.engine.fit",
    "innervision.engine.importing",
    "innervision.probes.resampler",
    "innervision.report.compare",
    "innervision.report.figures",
    "innervision.tasks.depth",
    "innervision.tasks.gen",
    "innervision.tasks.seg",
)
"""Modules that commands need: imported once here, they are there in every fork."""

for module in SHARED:
    import_module(module)
Image.init()

SECONDS = 20
"""After which a command counts as hanging."""

MEMORY = 4 << 30
"""Bytes that a command may take beside what this process holds already."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    """Exit status; below 0 the number of the signal that ended it."""
    out: str
    err: str
    memory: int
    """Bytes that it held at most, with what this process holds."""

    @property
    def error(self) -> str:
        """What stands after `innervision: error:`."""
        return self.err.rpartition("innervision: error: ")[2].strip() if "innervision: error: " in self.err else ""


def run_limited(words: list[str], folder: Path) -> Outcome:
    """Run a command in a fork of this process, in `folder`, and give how it ended."""
    files = [folder / ".out", folder / ".err"]
    gc.freeze()  # else a collection in the child would copy all that this process holds
    child = os.fork()
    if child == 0:
        _become(words, folder, files)
    try:
        _, status, used = os.wait4(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        gc.unfreeze()
    out, err = (path.read_text(errors="surrogateescape") for path in files)
    return Outcome(os.waitstatus_to_exitcode(status), out, err, 1024 * used.ru_maxrss)


def _become(words: list[str], folder: Path, files: list[Path]) -> None:
    """Run the command in the child, which never returns."""
    status = 70
    try:
        for number, path in zip((1, 2), files, strict=True):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        sys.stdin = open(os.devnull)  # noqa: SIM115  # as long as the process lives
        sys.stdout, sys.stderr = (os.fdopen(number, "w", errors="backslashreplace") for number in (1, 2))
        os.chdir(folder)
        torch.set_num_threads(1)  # the threads of this process's OpenMP did not come along, and would be waited for
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        status = main(words)
    except SystemExit as exit:
        status = int(exit.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
