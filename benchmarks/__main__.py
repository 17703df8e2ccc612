"""Speed and memory of a training step with random weights.

python -m benchmarks                        on the GPU at full size, or on two CPU cores at a smaller one
python -m benchmarks --json bench.json      write all numbers, too
"""

import argparse
import json
import logging
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks import memory, speed
from benchmarks.models import MEMORY_SIZES, SIZES

MOST_OVER_FROZEN = 1.35
LEAST_OVER_PLAIN = 2.5
MOST_GROWTH = 0.05

TITLES = {
    "mllm": "MLLM forward, no logits",
    "experts": "three experts",
    "frozen": "frozen forwards (both)",
    "ours": "our step",
    "probes": "  of it beyond the forwards",
    "plain": "plain step",
}
"""What the table calls the times."""


def main() -> None:
    """Measure, print a table, and write JSON where asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed and memory of a training step.")
    parser.add_argument("--size", choices=SIZES, help="by default full on a GPU, cpu elsewhere")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that are timed")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = options.size or ("full" if device.type == "cuda" else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(2)
    logging.getLogger("transformers").setLevel(logging.ERROR)

    by_layers = memory.measure(size, device.type)
    seconds, flops = speed.measure(SIZES[size], device, options.repeats)
    summary = speed.summarise(seconds, SIZES[size].batch)
    machine = speed.name_machine(device)
    print(f"InnerVision benchmark, size {size}, on {machine}")
    print("LLaVA-1.5-7B, Depth Anything V2-L, OneFormer Swin-L, CLIP ViT-H, random weights\n")
    print(speed_table(size, options.repeats, summary, speed.flop_ratios(flops)) + "\n")
    print(memory_table(size, by_layers))
    if options.json:
        numbers = {
            "machine": machine,
            "size": vars(SIZES[size]),
            "memory_size": vars(MEMORY_SIZES[size]),
            "seconds": seconds,
            "flops": flops,
            "summary": summary,
            "bytes": by_layers,
            "growth": {way: growth(found) for way, found in by_layers.items()},
        }
        options.json.write_text(json.dumps(numbers, indent=1) + "\n")


def speed_table(size: str, repeats: int, summary: dict[str, dict[str, float]], of_flops: dict[str, float]) -> str:
    """Make the table of times and ratios."""
    models = SIZES[size]
    frozen, plain = summary["ours/frozen"], summary["plain/ours"]
    lines = [
        f"speed: {models}, all of them probed for three targets;",
        f"a step is one batch of {models.batch}; {repeats} interleaved rounds",
        f"{'seconds':<32}{'median':>8}{'min – max':>18}",
        *(row(title, summary[name], 3) for name, title in TITLES.items()),
        row("images/s, our step", summary["images/s"], 2),
        f"{'ratio':<32}{'median':>8}{'min – max':>18}{'bound':>9}",
        row("our step / frozen forwards", frozen, 3)
        + verdict(f"≤ {MOST_OVER_FROZEN}", frozen["median"] <= MOST_OVER_FROZEN),
        f"{'  the same in operations':<32}{of_flops['ours/frozen']:>8.3f}",
        row("plain step / our step", plain, 3) + verdict(f"≥ {LEAST_OVER_PLAIN}", plain["median"] >= LEAST_OVER_PLAIN),
    ]
    lines.append(f"{'  the same in operations':<32}{of_flops['plain/ours']:>8.3f}")
    return "\n".join(lines)


def memory_table(size: str, by_layers: dict[str, dict[int, dict[str, int]]]) -> str:
    """Make the table of peak memory."""
    models = MEMORY_SIZES[size]
    lines = [
        f"peak memory: {models}, a batch of {models.batch};",
        "MiB without the probes' weights, gradients and optimizer state; growth per doubling",
        columns("probed layers", list(by_layers["ours"])) + f"{'growth':>18}{'bound':>9}",
    ]
    for way, found in by_layers.items():
        grown = growth(found)
        line = columns(way, [x["peak"] / 2**20 for x in found.values()])
        line += f"{'  '.join(f'{share:+.1%}' for share in grown):>18}"
        lines.append(line + (verdict("< 5%", max(grown) < MOST_GROWTH) if way == "ours" else ""))
        lines.append(
            columns("  beyond the frozen weights", [(x["peak"] - x["frozen"]) / 2**20 for x in found.values()])
        )
    lines.append(columns("left out", [x["probes"] / 2**20 for x in by_layers["ours"].values()]))
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
