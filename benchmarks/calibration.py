"""Do probes find what was planted, and nothing where there is nothing? Models whose right answer is known.

python -m benchmarks.calibration

Erases a target from a layer of `world/tuned`, writes one into a layer of noise, takes noise alone, mixes up the images,
and grows the sample; fits exact probes and scores them as a run does. Prints Markdown tables. About five minutes on one
core.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd

from benchmarks.planted import METRICS, World, erase, grow, noise, permute, write

FLOOR = 0.01
"""Explained variance that counts as none."""


def main() -> None:
    """Plant, probe and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20, help="layers erased, and layers written")
    parser.add_argument("--noise", type=int, default=400, help="trials of noise")
    parser.add_argument("--permutations", type=int, default=10, help="ways to mix up the images")
    parser.add_argument("--eraser", type=int, default=1600, help="scenes from which it is learnt what to erase")
    parser.add_argument("--train", type=int, default=640, help="scenes for the probes")
    parser.add_argument("--val", type=int, default=192, help="held-out scenes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    world = World(options.eraser, options.train, options.val)
    rng = np.random.default_rng(options.seed)
    erased = erase(world, options.trials, rng)
    rows = [
        summarize_erased(erased),
        summarize_written(write(world, options.trials, rng)),
        *summarize_noise(noise(world, options.noise, rng)),
        summarize_permuted(permute(world, options.permutations, rng)),
        *summarize_growth(*grow(world)),
    ]
    print_table(["planted", "must come out", "came out"], rows)
    print()
    print_table(["erased", "trials", "before", "after", "one layer on", "last layer", "others keep"], by_target(erased))


def summarize_erased(found: pd.DataFrame) -> tuple[str, str, str]:
    """Count the trials in which the curve falls to the floor at the layer, and not before."""
    fallen = (found["after"].abs() < FLOOR) & (found["before"] > 5 * FLOOR) & (found["earlier"] == 0)
    return (
        f"a target erased from one layer, {len(found)} times",
        f"explained variance below {FLOOR} from above {5 * FLOOR} at that layer; earlier layers as before, bit for bit",
        f"{fallen.sum()} of {len(found)}; at most {found['after'].max():.4f}, from {found['before'].min():.2f} to "
        f"{found['before'].max():.2f}",
    )


def by_target(found: pd.DataFrame) -> list[tuple[str, ...]]:
    """Give means over the trials of each target, and of layers after the erased one where there are any."""
    rows = []
    for target, trials in found.groupby("target"):
        mean = trials.mean(numeric_only=True)
        later = [f"{mean[name]:.2f} of {mean[f'{name} before']:.2f}" for name in ("next", "last")]
        numbers = [f"{mean['before']:.2f}", f"{mean['after']:.4f}", *later, f"{mean['others']:.0%}"]
        rows.append((str(target), str(len(trials)), *numbers))
    return rows


def summarize_written(found: pd.DataFrame) -> tuple[str, str, str]:
    """Count the trials in which the layer is found, and all others are at the floor."""
    right = (found["layer"] == found["found"]) & (found["others"] < FLOOR)
    return (
        f"a target written into one of nine layers of noise, {len(found)} times",
        f"this layer explains most; others below {FLOOR}",
        f"{right.sum()} of {len(found)}; there {found['explained'].min():.2f} or more, elsewhere at most "
        f"{found['others'].max():.4f}",
    )


def summarize_noise(found: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Tell how often the intervals hold 0, and why not."""
    rows = []
    for metric in METRICS:
        trials = found[found["metric"] == metric]
        none, above, below = trials["score"] == 0, trials["low"] > 0, trials["high"] < 0
        share = 1 - (above | below).mean()
        rows.append(
            (
                f"noise alone, {len(trials)} times: {metric.replace('_', ' ')}",
                "the 95% interval holds 0 in 95%",
                f"{share:.1%} (above 0: {above.mean():.1%}, below 0: {below.mean():.1%}); exactly 0 in "
                f"{none.mean():.1%}, of the others {1 - (above | below)[~none].mean():.1%} hold it",
            )
        )
    return rows


def summarize_permuted(found: pd.DataFrame) -> tuple[str, str, str]:
    """Give the range of explained variance where images are mixed up, and how often it is certainly above 0."""
    trials = found[found["metric"] == "explained_variance"]
    return (
        f"features of another image, {len(trials)} layers of all targets and ways to mix them up",
        "explained variance at most 0, to sampling error",
        f"{trials['score'].min():.4f} to {trials['score'].max():.4f}, mean {trials['score'].mean():.5f}; interval "
        f"above 0 in {(trials['low'] > 0).mean():.1%}",
    )


def summarize_growth(curves: pd.DataFrame, differences: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Tell how often more images explain more, and whether fewer ever explain certainly more than all."""
    steps = curves.diff(axis=1).iloc[:, 1:].to_numpy()
    sizes = ", ".join(map(str, curves.columns))
    return [
        (
            f"a growing sample ({sizes} images), {len(curves)} targets and layers",
            "explained variance of held-out images rises",
            f"in {(steps > 0).sum()} of {steps.size} steps; the largest fall is {max(0.0, -steps.min()):.4f}",
        ),
        (
            "the same, against the whole sample",
            "never above it by more than the interval of the difference",
            f"{(differences['low'] > 0).sum()} of {len(differences)}; the largest difference is "
            f"{differences['mean'].max():+.4f}",
        ),
    ]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print("|", " | ".join(header), "|")
    print("|" + "---|" * len(header))
    for row in rows:
        print("|", " | ".join(row), "|")


if __name__ == "__main__":
    main()
