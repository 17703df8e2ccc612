"""Do the 95% intervals hold? Simulated worlds whose true scores are known.

python -m benchmarks.coverage

Draws images from each world many times, scores them as a run is scored, and counts how often the interval holds the
true value. Prints a Markdown table and, on the way, on which side the other intervals miss. 2,000 trials, about six
minutes on one core, know a share of 95% to ±1 percentage point; `--trials 200` is quick. 5,000 images get a tenth.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from innervision.metrics.frechet import frechet_by_image, kernel_by_image
from innervision.metrics.interval import FEWEST
from innervision.report.jackknife import difference, jackknife
from innervision.report.tables import holds

BLOCK = 50
"""Trials in a table: each is a layer of it."""

Array = NDArray[np.float64]


class Sample(NamedTuple):
    """What was measured in some trials: rows of a score table, each trial a layer, for one run or for two."""

    tables: list[pd.DataFrame]
    truth: float | NDArray[np.float64]
    """Of the score, or of the difference of the two; by group where there are several. NaN = the mean over trials."""


World = Callable[[np.random.Generator, int, int], Sample]
"""Draws (trials, images)."""


def main() -> None:
    """Simulate all worlds and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="score what has this in its name")
    options = parser.parse_args()
    covers: dict[tuple[str, str], dict[int, str]] = {}
    chosen = [row for row in WORLDS if options.only in row[0]]
    for number, (score, label, images, share, world) in enumerate(tqdm(chosen, disable=None)):
        trials = options.trials if images <= 500 else max(100, options.trials // 10)
        found = simulate(world, images, trials, np.random.default_rng([options.seed, number]), share=share)
        text = f"{100 * found.covers:.1f}%" + " (warned)" * (found.warned > 0.5)
        covers.setdefault((score, label), {})[images] = text
        tqdm.write(f"{score}, {label}, {images} images: {found}", file=sys.stderr)
    sizes = sorted({images for cells in covers.values() for images in cells})
    print("| score | world |", " | ".join(f"{size:,} images" for size in sizes), "|")
    print("|---|---|" + "---:|" * len(sizes))
    for (score, label), cells in covers.items():
        print(f"| {score} | {label} |", " | ".join(cells.get(size, "") for size in sizes), "|")


class Found(NamedTuple):
    """Shares of the intervals of a world."""

    covers: float
    """Hold the truth."""
    below: float
    above: float
    warned: float
    """Bear a warning that they do not hold."""


def simulate(world: World, images: int, trials: int, rng: np.random.Generator, *, share: bool = False) -> Found:
    """Count how often the intervals of a world hold."""
    rows, truths = [], []
    for start in range(0, trials, BLOCK):
        tables, truth = world(rng, min(BLOCK, trials - start), images)
        series = [next(jackknife(table)) for table in tables]
        if len(series) == 2:
            scored = difference(*series, share=share)
        else:
            low, high = series[0].interval(share=share)
            scored = series[0].rows.assign(mean=series[0].score, low=low, high=high)
        scored = scored[scored["layer"].notna()]
        groups = scored["group"].notna() if np.ndim(truth) else scored["group"].isna()
        scored = scored[groups]
        rows.append(scored)
        truths.append(np.asarray(truth)[scored["group"].astype(int)] if np.ndim(truth) else np.full(len(scored), truth))
    scored, truth = pd.concat(rows), np.concatenate(truths)
    truth = np.where(np.isnan(truth), scored["mean"].mean(), truth)
    known = scored["low"].notna().to_numpy()
    low, high, truth = scored["low"][known], scored["high"][known], truth[known]
    return Found(
        float(((low <= truth) & (truth <= high)).mean()),
        float((high < truth).mean()),
        float((low > truth).mean()),
        float((~holds(scored[known])).mean()),
    )


def table(value: Array, weight: Array | None = None, group: Array | None = None) -> pd.DataFrame:
    """Make a score table of values (trials, images), or (trials, images, groups) where `group` names these."""
    weight = np.ones_like(value) if weight is None else weight
    index = np.nonzero(weight > 0)
    names = np.array([f"{i:05}" for i in range(value.shape[1])])
    columns = {
        "image": pd.Categorical.from_codes(index[1], names),
        "layer": pd.array(index[0] + 1, dtype="Int64"),
        "value": value[index],
        "weight": weight[index],
    }
    columns |= {name: pd.Categorical.from_codes(np.zeros(len(index[0]), int), ["x"]) for name in SERIES}
    if group is not None:
        columns["group"] = pd.Categorical.from_codes(index[2], group)
    return pd.DataFrame(columns)


SERIES = ("target", "source", "metric", "protocol")


# Means


def draw_mean(rng: np.random.Generator, trials: int, images: int, *, kind: str) -> Sample:
    """Draw values around a mean that is known in closed form."""
    shape = trials, images
    draws: dict[str, Callable[[], tuple[Array, float]]] = {
        "normal": lambda: (rng.normal(size=shape), 0.0),
        "exponential": lambda: (rng.exponential(size=shape), 1.0),
        "left-skewed": lambda: (-rng.gamma(0.5, size=shape), -0.5),
        "log-normal, σ 0.5": lambda: (rng.lognormal(0, 0.5, size=shape), float(np.exp(0.125))),
        "near 1: beta(8, 1)": lambda: (rng.beta(8, 1, size=shape), 8 / 9),
    }
    values, truth = draws[kind]()
    return Sample([table(values)], truth)


def draw_two_means(rng: np.random.Generator, trials: int, images: int) -> Sample:
    """Draw two runs of the same mean, skewed, whose images are easy or hard for both."""
    ease = rng.exponential(size=(trials, images))
    return Sample([table(ease + rng.exponential(size=ease.shape)) for _ in range(2)], 0.0)


# Shares


def draw_share(
    rng: np.random.Generator, trials: int, images: int, *, share: float, alike: float, runs: int = 1
) -> Sample:
    """Draw 1 to 4 pairs of points an image; `alike` is the correlation of pairs of an image, over runs as well."""
    pairs = rng.integers(1, 5, size=(trials, images))
    spread = 1 / alike - 1 if alike else np.inf
    ease = rng.beta(share * spread, (1 - share) * spread, size=pairs.shape) if alike else np.full(pairs.shape, share)
    tables = [table(rng.binomial(pairs, ease) / pairs, pairs.astype(float)) for _ in range(runs)]
    return Sample(tables, share if runs == 1 else 0.0)


# Intersection over union


def draw_classes(
    rng: np.random.Generator,
    trials: int,
    images: int,
    *,
    classes: int,
    top: float,
    power: float,
    runs: int = 1,
    by_class: bool = False,
) -> Sample:
    """Draw unions and intersections of classes, of which the k-th is in top / k^power of the images.

    Areas are log-normal, some classes are harder and some images are, and in one of 20 images without a class a small
    area is taken for it.
    """
    fixed = np.random.default_rng(classes)  # the world is the same in all trials
    often = top * np.arange(1, classes + 1) ** -power
    quality, area = fixed.beta(4, 4, size=classes), 0.1 * np.exp(fixed.normal(0, 0.5, size=classes))
    shape = trials, images, classes
    there = rng.random(shape) < often
    own = there * area * np.exp(rng.normal(size=shape))
    mean_area = area * np.exp(0.5)
    ease = rng.beta(6 * quality, 6 * (1 - quality), size=shape)
    tables = []
    for _ in range(runs):  # of two runs, half of the overlap is of the image and half of the run
        overlap = ease if runs == 1 else (ease + rng.beta(6 * quality, 6 * (1 - quality), size=shape)) / 2
        wrong = ~there & (rng.random(shape) < 0.05)
        union = own + wrong * 0.1 * area * np.exp(rng.normal(size=shape))
        with np.errstate(invalid="ignore"):
            value = np.where(there, own * overlap / union, np.nan)
        tables.append(table(value, union, np.arange(classes).astype(str)))
    iou = often * mean_area * quality / (often * mean_area + (1 - often) * 0.05 * 0.1 * mean_area)
    if runs > 1:
        return Sample(tables, np.zeros(classes) if by_class else 0.0)
    return Sample(tables, iou if by_class else float(iou.mean()))


# Distances of sets


def draw_sets(
    rng: np.random.Generator,
    trials: int,
    images: int,
    *,
    tails: str = "normal",
    near: float = 0.5,
    width: int = 16,
    kernel: bool = False,
    runs: int = 1,
) -> Sample:
    """Draw features of real images and of images drawn for them; `near` = 1 draws the real ones' own distribution."""
    scale = 1 / np.sqrt(1 + np.arange(width))
    mix = np.random.default_rng(1).normal(size=(width, width)) / 4

    def noise() -> Array:
        shape = images, width
        if tails == "heavy":
            return rng.standard_t(5, size=shape)
        return rng.exponential(size=shape) - 1 if tails == "skewed" else rng.normal(size=shape)

    by_image = kernel_by_image if kernel else frechet_by_image
    values = np.empty((runs, trials, images))
    for trial in range(trials):
        real = noise() * scale
        for run in range(runs):
            other = real @ (np.eye(width) + mix * (1 - near)) * near
            drawn = other + np.sqrt(1 - near**2) * noise() * scale + 0.4 * (1 - near) * scale
            values[run, trial] = by_image(drawn if near < 1 else noise() * scale, real)
    return Sample([table(value) for value in values], np.nan if runs == 1 else 0.0)


def _worlds() -> Iterator[tuple[str, str, int, bool, World]]:
    """Give of each row of the table: score, world, images, whether it is a share, and how it is drawn."""
    sizes = 50, 500
    for images in (FEWEST, *sizes):
        for kind in ("normal", "exponential", "left-skewed", "log-normal, σ 0.5", "near 1: beta(8, 1)"):
            yield "mean", kind, images, False, partial(draw_mean, kind=kind)
    for images in sizes:
        for share, alike in ((0.6, 0.3), (0.9, 0.0), (0.9, 0.3), (0.9, 0.8), (0.97, 0.0), (0.97, 0.3)):
            world = partial(draw_share, share=share, alike=alike)
            yield "accuracy", f"{share:.0%} right, pairs of an image {alike:.0%} alike", images, True, world
        for top, power in ((0.6, 0.7), (0.5, 1.0), (0.4, 0.3)):
            world = partial(draw_classes, classes=20, top=top, power=power)
            span = f"20 classes in {top:.0%} to {top * 20**-power:.1%} of the images"
            yield "mIoU", span, images, False, world
            yield "IoU of a class", span, images, False, partial(world, by_class=True)
        for tails in ("normal", "skewed", "heavy"):
            yield "FID", f"16 features, {tails}", images, False, partial(draw_sets, tails=tails)
        yield "FID", "16 features, drawn as the real ones", images, False, partial(draw_sets, near=1.0)
        for width in (4, 64):
            yield "FID", f"{width} features, normal", images, False, partial(draw_sets, width=width)
        for tails in ("normal", "skewed"):
            yield "KID", f"16 features, {tails}", images, False, partial(draw_sets, tails=tails, kernel=True)
        yield "difference of means", "skewed, no difference", images, False, draw_two_means
        for share in (0.6, 0.9, 0.97):
            world = partial(draw_share, share=share, alike=0.3, runs=2)
            yield "difference of accuracies", f"{share:.0%} right, no difference", images, True, world
        world = partial(draw_classes, classes=20, top=0.6, power=0.7, runs=2)
        yield "difference of mIoU", "20 classes, no difference", images, False, world
        yield "difference of IoU of a class", "20 classes, no difference", images, False, partial(world, by_class=True)
        yield "difference of FID", "16 features, no difference", images, False, partial(draw_sets, runs=2)
    for images in (50, 500, 5000):
        world = partial(draw_classes, classes=133, top=0.6, power=1.0)
        yield "mIoU", "133 classes in 60% to 0.5% of the images", images, False, world


WORLDS = list(_worlds())


if __name__ == "__main__":
    main()
