"""How much faster several processes are than one: the same fit of exact probes, one thread in each process.

OMP_NUM_THREADS=1 python -m benchmarks.scaling --processes 2

Times are those of the fit alone, from images on disk to probes on disk, once the models are loaded.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from innervision.config import TrainSettings
from innervision.engine.fit import fit
from innervision.mllm import MLLM
from innervision.targets import load_targets
from innervision.world.dataset import write_scenes

TARGETS = "depth=world/depth,seg=world/seg,gen=world/gen"


def main() -> None:
    """Time one and several processes in turn, and print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--scenes", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fit", help=argparse.SUPPRESS)  # the folder, in a process that the benchmark has started
    given = parser.parse_args()
    if given.fit:
        time_fit(Path(given.fit))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder) / "scenes", train=given.scenes, val=1, progress=False)
        found: dict[int, list[float]] = {1: [], given.processes: []}
        for _ in range(given.rounds):
            for count, seconds in found.items():
                seconds.append(start(count, folder))
    for count, seconds in found.items():
        told = ", ".join(f"{each:.1f}" for each in seconds)
        print(f"{count} x 1 thread: {median(seconds):.1f} s for {given.scenes} scenes ({told})")
    print(f"ratio of the medians: {median(found[1]) / median(found[given.processes]):.2f}")


def start(count: int, folder: str) -> float:
    """Let so many processes fit together; give the seconds that it took."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [*torchrun, "-m", "benchmarks.scaling", "--fit", folder]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return json.loads((Path(folder) / "seconds.json").read_text(encoding="utf-8"))


def time_fit(folder: Path) -> None:
    """Fit exact probes of the demo's targets to all layers of `world/tuned`."""
    torch.set_num_threads(1)
    settings = TrainSettings(
        mllm="world/tuned",
        targets=TARGETS,
        images=str(folder / "scenes/train2017"),
        out=str(folder / f"run of {os.environ['TORCHELASTIC_RUN_ID']}"),
        workers=0,
        device="cpu",
    )
    mllm, targets = MLLM.load(settings.mllm, device="cpu"), load_targets(TARGETS, device="cpu")
    began = time.perf_counter()
    fit(settings, mllm=mllm, targets=targets, progress=False)
    if os.environ["RANK"] == "0":
        (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - began), encoding="utf-8")


if __name__ == "__main__":
    main()
