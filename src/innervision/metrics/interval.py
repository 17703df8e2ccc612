"""How far a mean over images may be trusted."""

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
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK // images)
    means = [_weights(rng, min(rows, resamples - start), images) @ flat for start in range(0, resamples, rows)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def _weights(rng: np.random.Generator, resamples: int, images: int) -> NDArray[np.float64]:
    """How often each resample drew each image, over their number: (resamples, images), each row sums to 1."""
    drawn = rng.integers(images, size=(resamples, images))
    drawn += images * np.arange(resamples)[:, None]  # one counter per resample and image
    counts = np.bincount(drawn.ravel(), minlength=resamples * images)
    return counts.reshape(resamples, images) / images
