"""Speed and memory of a step of fitting probes, exact and trained, with random weights.

python -m benchmarks                        on the GPU at full size, or on a CPU at a smaller one
OMP_NUM_THREADS=1 python -m benchmarks      with one thread, where other work runs beside it
python -m benchmarks --json bench.json      write all numbers, too
"""

import argparse
import json
import logging
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks import memory, operations, speed
from benchmarks.models import MEMORY_SIZES, SIZES

BOUNDS = {"ridge/frozen": "≤ 1.15", "resampler/frozen": "≤ 1.35", "plain/resampler": "≥ 2.5"}
"""Of the ratios."""
MOST_GROWTH = 0.05

TITLES = {
    "mllm": "MLLM forward, no logits",
    "experts": "three experts",
    "frozen": "frozen forwards (both)",
    "ridge": "step of exact probes",
    "resampler": "step of trained probes",
    "plain": "the same, the plain way",
    "ridge/frozen": "exact probes / frozen forwards",
    "resampler/frozen": "trained / frozen forwards",
    "plain/resampler": "plain way / trained",
}
"""What the table calls the times and ratios; a step runs the frozen models."""


def main() -> None:
    """Measure, print a table, and write JSON where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Speed and memory of a step of fitting probes."
    )
    parser.add_argument("--size", choices=SIZES, help="by default full on a GPU, cpu elsewhere")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that are timed")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = options.size or ("full" if device.type == "cuda" else "cpu")
    logging.getLogger("transformers").setLevel(logging.ERROR)

    by_layers = memory.measure(size, device.type)
    seconds, flops = speed.measure(SIZES[size], device, options.repeats)
    summary = speed.summarise(seconds, SIZES[size].batch)
    machine = speed.name_machine(device)
    print(f"InnerVision benchmark, size {size}, on {machine}")
    print("LLaVA-1.5-7B, Depth Anything V2-L, OneFormer Swin-L, CLIP ViT-H, random weights\n")
    print(speed_table(size, options.repeats, summary, speed.flop_ratios(flops)) + "\n")
    full = operations.count(SIZES["full"])
    print(operations.table(full) + "\n")
    print(memory_table(size, by_layers))
    if options.json:
        numbers = {
            "machine": machine,
            "size": vars(SIZES[size]),
            "memory_size": vars(MEMORY_SIZES[size]),
            "seconds": seconds,
            "flops": flops,
            "flops of an image at full size": full,
            "summary": summary,
            "bytes": by_layers,
            "growth": {way: growth(found) for way, found in by_layers.items()},
        }
        options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def speed_table(size: str, repeats: int, summary: dict[str, dict[str, float]], of_flops: dict[str, float]) -> str:
    """Make the table of times and ratios."""
    models = SIZES[size]
    lines = [
        f"speed: {models}, all of them probed for three targets;",
        f"a step is one batch of {models.batch}; {repeats} interleaved rounds",
        f"{'seconds':<32}{'median':>8}{'min – max':>18}",
        *(row(title, summary[name], 3) for name, title in TITLES.items() if name not in BOUNDS),
        *(row(f"images/s, {TITLES[name]}", summary[f"{name}, images/s"], 2) for name in ("ridge", "resampler")),
        f"{'ratio':<32}{'median':>8}{'min – max':>18}{'bound':>9}",
    ]
    for name, bound in BOUNDS.items():
        lines.append(row(TITLES[name], summary[name], 3) + verdict(bound, keeps(bound, summary[name]["median"])))
        lines.append(f"{'  the same in operations':<32}{of_flops[name]:>8.3f}")
    return "\n".join(lines)


def keeps(bound: str, number: float) -> bool:
    """Tell whether a number keeps a bound, "≤ x" or "≥ x"."""
    sign, limit = bound.split()
    return number <= float(limit) if sign == "≤" else number >= float(limit)


def memory_table(size: str, by_layers: dict[str, dict[int, dict[str, int]]]) -> str:
    """Make the table of peak memory."""
    models = MEMORY_SIZES[size]
    lines = [
        f"peak memory: {models}, a batch of {models.batch};",
        "MiB without the probes' weights and sums, gradients and optimizer state; growth per doubling",
        columns("probed layers", list(by_layers["ridge"])) + f"{'growth':>18}{'bound':>9}",
    ]
    for way, found in by_layers.items():
        grown = growth(found)
        line = columns(TITLES[way], [x["peak"] / 2**20 for x in found.values()])
        line += f"{'  '.join(f'{share:+.1%}' for share in grown):>18}"
        lines.append(line + (verdict("< 5%", max(grown) < MOST_GROWTH) if way != "plain" else ""))
        lines.append(
            columns("  beyond the frozen weights", [(x["peak"] - x["frozen"]) / 2**20 for x in found.values()])
        )
        lines.append(columns("  left out", [x["probes"] / 2**20 for x in found.values()]))
    return "\n".join(lines)


def growth(found: dict[int, dict[str, int]]) -> list[float]:
    """Give the share by which the peak grows with each doubling of the layers."""
    peaks = [x["peak"] for x in found.values()]
    return [after / before - 1 for before, after in pairwise(peaks)]


def row(title: str, numbers: dict[str, float], digits: int) -> str:
    """Make a line of median, least and largest."""
    least, largest = (f"{numbers[key]:.{digits}f}" for key in ("min", "max"))
    return f"{title:<32}{numbers['median']:>8.{digits}f}{f'{least} – {largest}':>18}"


def columns(title: str, numbers: list[float]) -> str:
    """Make a line of whole numbers."""
    return f"{title:<32}" + "".join(f"{number:>8.0f}" for number in numbers)


def verdict(bound: str, kept: bool) -> str:
    """Make the columns of a bound."""
    return f"{bound:>9}  {'PASS' if kept else '—'}"


if __name__ == "__main__":
    main()
