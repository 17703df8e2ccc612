"""What the sums of exact probes take in memory, and how long solving them takes, by the width of the MLLM's states.

python -m benchmarks.sums                     memory by arithmetic; solving measured, by default for widths 896 and 2048
"""

import argparse
import statistics
import time

import torch

from innervision.probes.moments import FeatureMoments, StateMoments, choose, solve

WIDTHS = {
    896: "Qwen2-0.5B",
    2048: "Qwen2.5-VL-3B",
    3584: "Qwen2-VL-7B",
    4096: "LLaVA-1.5-7B",
    5120: "LLaVA-1.5-13B",
    8192: "Qwen2-VL-72B",
}
"""Width of the states -> a model that has it."""

TARGETS = {576: {"depth": 1024, "seg": 1536}, 1: {"gen": 1024}}
"""Number of cells -> the default targets that have so many, and the widths of their features."""


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sums", description=__doc__.splitlines()[0])
    parser.add_argument("--solve", type=int, nargs="*", default=[896, 2048], help="widths to be solved")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("| width | such as | float32 (accelerator) | float64 (CPU) | solving a layer |")
    print("|---:|---|---:|---:|---:|")
    for width, model in WIDTHS.items():
        sizes = [f"{count_bytes(width, dtype) / 1e6:,.0f} MB" for dtype in (torch.float32, torch.float64)]
        seconds = f"{time_solving(width, options.repeats):.1f} s" if width in options.solve else ""
        print(f"| {width} | {model} | {sizes[0]} | {sizes[1]} | {seconds} |")


def count_bytes(width: int, dtype: torch.dtype) -> int:
    """Count the bytes of the sums of one layer's states, for the default targets."""
    moments = [StateMoments(cells, width, widths, dtype) for cells, widths in TARGETS.items()]
    return sum(buffer.numel() * buffer.element_size() for each in moments for buffer in each.buffers())


def time_solving(width: int, repeats: int) -> float:
    """Give the median of the seconds that choosing the penalties of one layer and solving it take, on this CPU."""
    torch.manual_seed(0)
    filled = []
    for cells, widths in TARGETS.items():
        images = max(10, 2 * width // cells)  # more rows than columns
        held_out = torch.arange(images) % 5 == 0
        states = torch.randn(images, cells, width)
        moments = StateMoments(cells, width, widths, torch.float64).to_empty(device="cpu")
        features = {
            name: FeatureMoments(cells, out, torch.float64).to_empty(device="cpu") for name, out in widths.items()
        }
        for buffer in [*moments.buffers(), *(buffer for each in features.values() for buffer in each.buffers())]:
            buffer.zero_()
        truth = {
            name: states @ torch.randn(width, out) + torch.randn(images, cells, out) for name, out in widths.items()
        }
        away = {name: features[name].add(values, held_out) for name, values in truth.items()}
        moments.add(states, torch.ones(images, cells, dtype=torch.bool), away, held_out, torch.float64)
        filled.append((moments, features))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        for moments, features in filled:
            for name, choice in choose(moments, features).items():
                solve(moments, features[name], name, choice.penalty)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
