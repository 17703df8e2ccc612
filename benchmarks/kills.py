"""Kills training and scoring at random moments, calls them again, and compares what is left with an undisturbed run's.

OMP_NUM_THREADS=1 python -m benchmarks.kills --kills 50
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import torch
from tqdm import tqdm

from innervision.cli import main as innervision_command
from innervision.mllm.check import noise

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from tiny_experts import save_tiny_depth, save_tiny_gen  # the tests are no package
from tiny_mllms import save_tiny

for module in ("engine.evaluate", "engine.fit", "report.tables", "tasks.depth"):
    import_module(f"innervision.{module}")  # once here, so that it is there in every fork

IMAGES = 40
SECONDS = re.compile(rb'((?:device_)?seconds"?:) [0-9.]+')
"""What work took, in run.yaml and in the files beside score tables."""
LONGEST = 300
"""Seconds after which a command that was called again counts as hanging."""


@dataclass
class Work:
    """Something that is killed: a command that writes to a run's folder."""

    name: str
    words: Callable[[bool], list[str]]
    """Gives the words of the command: of its first call (False), and of one that resumes it."""
    start: Path | None = None
    """A run that the command needs; a copy of it is worked on."""
    kills: int = 0
    loading: int = 0
    """Kills before the command had written anything."""
    half_written: int = 0
    """Kills that left a temporary file."""
    faults: list[str] = field(default_factory=list)
    """What was not as in an undisturbed run."""

    def row(self) -> str:
        """Write the row of the table."""
        same = self.kills - len(self.faults)
        return f"| {self.name} | {self.kills} | {self.loading} | {self.half_written} | {same} of {self.kills} |"


def main() -> None:
    """Kill, compare and print; the exit status is 1 if anything differed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of each work")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        works = prepare(Path(folder), options.workers)
        dice = random.Random(options.seed)
        print("| work | kills | before it wrote anything | left half a file | ended as an undisturbed one |")
        print("|---|---|---|---|---|")
        for work in works:
            disturb(work, Path(folder) / "run", options.kills, dice)
            print(work.row(), flush=True)
    for work in works:
        for fault in work.faults:
            print(f"{work.name}: {fault}")
    sys.exit(any(work.faults for work in works))


def prepare(root: Path, workers: int) -> list[Work]:
    """Write tiny models and images, and train what is scored."""
    save_tiny("llava", root / "llava")
    save_tiny_depth(root / "depth")
    save_tiny_gen(root / "gen")
    (root / "images").mkdir()
    for number in range(IMAGES):
        noise(60, 40, seed=number).save(root / f"images/{number:02}.png")
    common = ["--images", f"{root}/images", "--workers", str(workers), "--device", "cpu"]

    def train(*options: str) -> Callable[[bool], list[str]]:
        words = ["train", "--mllm", f"{root}/llava", "--targets", f"depth={root}/depth,gen={root}/gen", *common]
        words += ["--out", f"{root}/run", "--save-minutes", "0", "--batch-size", "4", *options]
        return lambda resume: [*words, *(["--resume"] if resume else [])]

    exact, trained = train(), train("--probe.kind", "resampler", "--epochs", "2")
    if run(exact(False)) != 0:
        sys.exit("training fails even undisturbed")
    (root / "run").rename(root / "trained")
    score = ["evaluate", "similarity", f"{root}/run", "--batch-size", "2", *common]
    return [
        Work("training of trained probes", trained),
        Work("training of exact probes", exact),
        Work("scoring", lambda resume: score, start=root / "trained"),
    ]


def disturb(work: Work, folder: Path, kills: int, dice: random.Random) -> None:
    """Kill a work at random moments of its duration, each time begun anew, and see what comes of it."""

    def renew() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if work.start is not None:
            shutil.copytree(work.start, folder)

    renew()
    before = read(folder)
    began = time.perf_counter()
    if run(work.words(False)) != 0:
        sys.exit(f"{work.name} fails even undisturbed")
    seconds = time.perf_counter() - began
    whole = read(folder)
    bar = tqdm(total=kills, desc=work.name, disable=None)
    while work.kills < kills:
        renew()
        moment = dice.uniform(0, seconds)
        if run(work.words(False), moment) != -signal.SIGKILL:
            continue  # it was faster than the dice
        work.kills += 1
        bar.update()
        left = read(folder)
        work.loading += left == before
        work.half_written += any(Path(name).name.startswith(".") and name.count("-") for name in left)
        status = run(work.words((folder / "run.yaml").exists()))
        found = read(folder)
        if status != 0:
            work.faults.append(f"killed after {moment:.2f} s, it ends with status {status} when it is called again")
        elif different := sorted(name for name in found | whole if found.get(name) != whole.get(name)):
            work.faults.append(f"killed after {moment:.2f} s, it ends with other content: {', '.join(different)}")


def run(words: list[str], seconds: float | None = None) -> int:
    """Run a command in a fork; kill it after some seconds if it still runs, and give how it ended, as `subprocess`."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            if seconds is None:
                signal.alarm(LONGEST)
            status = innervision_command(words)
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def read(folder: Path) -> dict[str, bytes]:
    """Give the content of all files of a run, without locks, which name a process, pace and durations."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".lock" and path.name != ".lock":
            with contextlib.suppress(FileNotFoundError):  # a worker of the killed process has just ended
                found[str(path.relative_to(folder))] = path.read_bytes()
    if log := found.get("train/log.jsonl"):
        lines = [json.loads(line) for line in log.splitlines() if line.endswith(b"}")]
        found["train/log.jsonl"] = json.dumps([{**line, "images_per_second": 0} for line in lines]).encode()
    facts = re.compile(r"run\.yaml|scores/[^/.]+\.json")
    return {
        name: SECONDS.sub(rb"\1 0", content) if facts.fullmatch(name) else content for name, content in found.items()
    }


if __name__ == "__main__":
    main()
