"""How far a mean over images may be trusted."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK = 2**22
"""Most resampling weights held at a time (32 MiB), however many the images."""


def bootstrap_interval(
    values: NDArray[np.floating], confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the percentile bootstrap interval of the mean over images (Efron and Tibshirani 1993, ch. 13).

    `values` is (images, ...); `low` and `high` have the trailing shape. All trailing entries share the same
    resamples of the images, so layers and metrics of one table move together. The same seed and number of
    images give the same resamples.

    One image says nothing about the spread: both ends are NaN.

    Raises:
        ValueError: there is no image, or a value is NaN or infinite.
    """
    values = np.asarray(values, dtype=np.float64)
    images = len(values)
    if images == 0:
        raise ValueError("an interval needs at least one image")
    if not np.isfinite(values).all():
        raise ValueError("an interval needs finite values: some are NaN or infinite")
    if images == 1:
        nothing = np.full(values.shape[1:], np.nan)
        return nothing, nothing

    flat = values.reshape(images, -1)  # (images, entries)
    means = [weights @ flat for weights in resample_weights(images, resamples, seed)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def resample_weights(images: int, resamples: int = 1000, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """Draw resamples of the images, some at a time: how often each image comes up in each, over their number.

    Yields:
        (rows, images), each row of which sums to 1; `resamples` rows in all.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK // images)
    for start in range(0, resamples, rows):
        yield _weights(rng, min(rows, resamples - start), images)


def _weights(rng: np.random.Generator, resamples: int, images: int) -> NDArray[np.float64]:
    """How often each resample drew each image, over their number: (resamples, images), each row sums to 1."""
    drawn = rng.integers(images, size=(resamples, images))
    drawn += images * np.arange(resamples)[:, None]  # one counter per resample and image
    counts = np.bincount(drawn.ravel(), minlength=resamples * images)
    return counts.reshape(resamples, images) / images
