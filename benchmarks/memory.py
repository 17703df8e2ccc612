"""Peak memory of training by number of probed layers; the MLLM stays the same, each number in a process of its own.

python -m benchmarks.memory SIZE DEVICE (ridge|resampler|plain) EVERY     measures one of them and prints JSON
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import MEMORY_SIZES, Bench, build, make_descent, make_solver
from benchmarks.plain import PlainLearner
from benchmarks.speed import say
from innervision.engine.learner import Learner

EVERY = (4, 2, 1)
"""Every 4th, every 2nd and each of the 32 layers: 8, 16 and 32 probed layers."""

RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Blocks above 64 KiB go back to the system when they are freed, so that the process is as large as its tensors."""


def measure(size: str, device: str) -> dict[str, dict[int, dict[str, int]]]:
    """Measure all ways with 8, 16 and 32 probed layers.

    Returns:
        By way (ridge, resampler, plain) and number of layers, in bytes: `peak`, less what was there before the models
        and less `probes`; `probes` (the weights of the probes, with the sums of exact ones, or the gradients and
        AdamW's two moments of trained ones); `frozen` (the weights of the MLLM and the experts, a part of `peak`).
    """
    result: dict[str, dict[int, dict[str, int]]] = {}
    for way in ("ridge", "resampler", "plain"):
        result[way] = {}
        for every in EVERY:
            found = run_module("benchmarks.memory", size, device, way, str(every), **RETURNED)
            result[way][found.pop("layers")] = found
            say(f"memory, {way}, every {every}: {found['peak'] / 2**20:.0f} MiB without the probes")
    return result


def run_module(module: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run a module of the benchmark in a fresh process, and read the JSON that it prints last."""
    command = [sys.executable, "-m", module, *arguments]
    output = subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def measure_here(size: str, device: torch.device, way: str, every: int) -> dict[str, int]:
    """Measure one way in this process, which must not have done anything else."""
    before = peak_memory(device)
    bench = build(MEMORY_SIZES[size], device)
    layers = range(every, bench.mllm.num_layers + 1, every)
    learner: Learner
    if way == "ridge":
        learner = solver = make_solver(bench, layers)
        modules = (*learner.banks.values(), *solver.features.values(), *solver.states.values())
        probes = sum(map(count_bytes, modules))
    else:
        learner = descent = make_descent(bench, layers)
        probes = 4 * sum(count_bytes(bank) for bank in learner.banks.values())
    learn: Callable[[], object]
    finish_step: Callable[[], object]
    if way == "plain":
        plain = PlainLearner(bench, descent)
        learn, finish_step = plain.learn, plain.finish_step
    else:
        learn, finish_step = partial(learner.learn, bench.batch), learner.finish_step
    learn()
    finish_step()
    learn()
    learn()  # during which AdamW's moments and all gradients are there, so that all of them are in the peak
    finish_step()
    return {
        "layers": len(layers),
        "peak": peak_memory(device) - before - probes,
        "probes": probes,
        "frozen": count_frozen(bench),
    }


def count_frozen(bench: Bench) -> int:
    """Count the bytes of the MLLM's and the experts' weights."""
    return sum(count_bytes(x) for x in (bench.mllm.model, bench.depth_model, *bench.targets[1:]))


def count_bytes(module: torch.nn.Module) -> int:
    """Count the bytes of a module's weights and buffers."""
    return sum(each.numel() * each.element_size() for each in (*module.parameters(), *module.buffers()))


def peak_memory(device: torch.device) -> int:
    """Give the largest memory in use so far, in bytes: the tensors on a GPU, or the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage may count what the parent process had before this program started
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    name, place, which, step = sys.argv[1:]
    print(json.dumps(measure_here(name, torch.device(place), which, int(step))))
