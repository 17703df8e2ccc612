"""Exact probes beside what one would do by hand: keep the states on disk, then scikit-learn's Ridge for each layer.

python -m benchmarks.by_hand                               both, each in a process of its own
python -m benchmarks.by_hand SIZE IMAGES FOLDER WAY        one of them (package or hand) in this process

Both see the same images. Ours chooses the penalties, which the other way is then given: by hand they would have to be
searched, too. Both standardise alike: a mean for each cell, a standard deviation for each column over all cells. And
both read the states in a cell alike, in float32: to take the token that stands there instead is the same but for
rounding, which maps with a small penalty enlarge to some millionths of their weights.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from benchmarks.memory import peak_memory, run_module
from benchmarks.models import SIZES, Bench, SquareGrid, build, make_batch, make_solver
from innervision.data.loader import Batch
from innervision.probes.ridge import Ridge as RidgeProbe

Array = NDArray[Any]

WAYS = {"package": "InnerVision, sums on the way", "hand": "states on disk, scikit-learn"}
SAME = 1e-6
"""Largest difference of two weights, as a share of the largest weight of its map."""


def main() -> None:
    """Measure both ways, compare their weights and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.by_hand", description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["cpu", "tiny"], default="cpu")
    parser.add_argument("--images", type=int, default=96)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {way: run_module("benchmarks.by_hand", options.size, str(options.images), folder, way) for way in WAYS}
        print_numbers(found, options.size, options.images)
        maps, difference = compare(Path(folder))
    print(f"{maps} maps other than 0; their weights differ by {difference:.1e} of the largest at most")


def print_numbers(found: dict[str, dict[str, float]], size: str, images: int) -> None:
    """Print what `run_here` gave, by way."""
    print(f"{SIZES[size]}, and layer 0; three targets, {images} images, {torch.get_num_threads()} threads")
    print(f"{'':<32}{'forwards':>12}{'solving':>12}{'peak':>12}{'on disk':>12}")
    for way, title in WAYS.items():
        numbers = found[way]
        print(
            f"{title:<32}{numbers['forwards']:>10.1f} s{numbers['solving']:>10.1f} s{numbers['peak'] / 2**20:>8.0f} MiB"
            f"{numbers['disk'] / 2**20:>8.0f} MiB"
        )


def run_here(size: str, images: int, folder: Path, way: str) -> dict[str, float]:
    """Go one way in this process, which must not have done anything else, and leave its weights in the folder.

    Returns:
        `forwards` and `solving` in seconds, `peak` (memory beyond that of the models) and `disk` in bytes.
    """
    bench = build(SIZES[size], torch.device("cpu"))
    before = peak_memory(bench.mllm.device)
    began = time.perf_counter()
    forwards = fit_ours(bench, images, folder) if way == "package" else fit_by_hand(bench, images, folder)
    return {
        "forwards": forwards,
        "solving": time.perf_counter() - began - forwards,
        "peak": peak_memory(bench.mllm.device) - before,
        "disk": sum(path.stat().st_size for path in folder.glob("*.npy")),
    }


def batches(bench: Bench, images: int) -> Iterator[Batch]:
    """Give the images in batches."""
    for first in range(0, images, bench.size.batch):
        yield make_batch(bench.size, bench.mllm, bench.targets, first)


def fit_ours(bench: Bench, images: int, folder: Path) -> float:
    """Fit exact probes, and save their weights and penalties; give the seconds before the last solving."""
    began = time.perf_counter()
    layers = range(bench.mllm.num_layers + 1)
    solver = make_solver(bench, layers, images)
    for batch in batches(bench, images):
        solver.learn(batch)
        solver.finish_step()
    forwards = time.perf_counter() - began
    facts = solver.finish()
    weights, penalties = {}, {}
    for name, bank in solver.banks.items():
        for layer in layers:
            weights[f"{name} {layer}"] = bank.probes[str(layer)].get_parameter("weight").numpy()
            penalties[f"{name} {layer}"] = facts[name]["held_out"][layer]["penalty"]
    np.savez(folder / "package.npz", **weights)
    (folder / "penalties.json").write_text(json.dumps(penalties), encoding="utf-8")
    return forwards


def fit_by_hand(bench: Bench, images: int, folder: Path) -> float:
    """Write the states of all layers and the features to files, then fit; give the seconds before fitting."""
    began = time.perf_counter()
    for number, batch in enumerate(batches(bench, images)):
        first = number * bench.size.batch
        for name, values in look(bench, batch):
            path = folder / f"{name}.npy"
            if first == 0:
                open_memmap(path, "w+", dtype=np.float32, shape=(images, *values.shape[1:]))
            open_memmap(path, "r+")[first : first + len(values)] = values
    forwards = time.perf_counter() - began
    penalties = json.loads((folder / "penalties.json").read_text(encoding="utf-8"))
    weights = {}
    grid = SquareGrid(bench.mllm).find(bench.batch.inputs, [0])[0][:1].expand(images, -1, -1)
    for layer in range(bench.mllm.num_layers + 1):
        states = torch.from_numpy(np.load(folder / f"layer {layer}.npy"))
        mask = torch.ones(states.shape[:2], dtype=torch.bool)
        for target in bench.targets:
            features = np.load(folder / f"{target.name}.npy")
            read, _ = RidgeProbe.read(states, mask, grid, features.shape[1])
            name = f"{target.name} {layer}"
            weights[name] = regress(read.numpy(), features, penalties[name])
    np.savez(folder / "hand.npz", **weights)
    return forwards


@torch.no_grad()
def look(bench: Bench, batch: Batch) -> Iterator[tuple[str, Array]]:
    """Give the states of each layer and the features of each target, as arrays (B, T, D) and (B, N, C)."""
    output = bench.mllm.model.model(**batch.inputs.tensors, use_cache=False, output_hidden_states=True)
    for layer, states in enumerate(output.hidden_states):
        yield f"layer {layer}", states.numpy()
    for target in bench.targets:
        yield target.name, target.encode(batch.pixels[target.name]).numpy()


def regress(states: Array, features: Array, penalty: float | None) -> Array:
    """Give the map (D, C) from states (images, N, D) to features (images, N, C), with a penalty of standardised states.

    No penalty stands for an infinite one.
    """
    width = states.shape[2]
    if penalty is None:
        return np.zeros((width, features.shape[2]))
    x = (states - states.mean(axis=0, dtype=np.float64)).reshape(-1, width)
    y = (features - features.mean(axis=0, dtype=np.float64)).reshape(len(x), -1)
    deviation = np.sqrt(np.square(x).mean(axis=0))
    x /= deviation
    return Ridge(alpha=penalty, fit_intercept=False, solver="cholesky").fit(x, y).coef_.T / deviation[:, None]


def compare(folder: Path) -> tuple[int, float]:
    """Compare the weights that both ways have left in a folder.

    Returns:
        The number of maps that are not 0, and the largest difference of two weights as a share of the largest weight
        of its map.

    Raises:
        AssertionError: it is too large.
    """
    maps, worst = 0, 0.0
    ours, theirs = (np.load(folder / f"{way}.npz") for way in WAYS)
    for name in ours:
        if largest := np.abs(theirs[name]).max():
            maps += 1
            worst = max(worst, float(np.abs(ours[name] - theirs[name]).max() / largest))
        elif ours[name].any():
            raise AssertionError(f"{name}: one way gives weights, and the other none")
    if not worst <= SAME:
        raise AssertionError(f"the weights of the two ways differ by {worst:.1e} of the largest")
    return maps, worst


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[-1] in WAYS:
        print(json.dumps(run_here(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])))
    else:
        main()
