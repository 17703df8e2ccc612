"""How far a score over images may be trusted: 95% intervals from what each image adds to the score.

Everything starts from the jackknife (Efron and Tibshirani 1993, ch. 11): `changes` (n, R) says of R scores how much
each changes when one of n images is left out. Changes need no random numbers, hold for ratios as for means, and those
of a difference of two scores over the same images are the difference of their changes, which is all that a paired
comparison needs.

Which interval holds was chosen by simulation: see `benchmarks/coverage.py`.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEWEST = 5
"""Fewer images say too little of the spread for an interval."""

CONFIDENCE = 0.95

Array = NDArray[np.float64]


def jackknife_error(changes: Array, images: ArrayLike) -> Array:
    """Give the standard error (R,) of scores from their changes (n, R).

    Of a plain mean it is the usual one, s / √n.

    Args:
        changes: of each score by leaving out each image; 0 for an image that does not touch the score.
        images: how many images the score is of, one number or (R,).
    """
    images = np.asarray(images, dtype=float)
    return np.sqrt((images - 1) / images * np.square(changes).sum(axis=0))


def jackknife_skewness(changes: Array, images: ArrayLike) -> Array:
    """Give the skewness (R,) of means of n values, which is that of the values over √n; 0 where they do not vary.

    That of the values is the one adjusted for few of them, as `scipy.stats.skew(bias=False)`.

    Args:
        changes: of each mean by leaving out each image, (n, R).
        images: n, one number or (R,).
    """
    images = np.asarray(images, dtype=float)
    second, third = np.square(changes).sum(axis=0), -(changes**3).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        skewness = third / second**1.5 * np.sqrt(images * (images - 1)) / (images - 2)
    return np.where(second > 0, skewness, np.where(np.isnan(second), np.nan, 0))


def mean_interval(
    score: ArrayLike, error: ArrayLike, freedom: ArrayLike, skewness: ArrayLike = 0.0
) -> tuple[Array, Array]:
    """Give the ends of Student's t-interval, after the skewness of the mean is transformed away.

    The transformation is the cubic one of Hall (1992), "On the removal of skewness by transformation", J. R. Stat. Soc.
    B 54, 221-228. It covers as the bootstrap-t does, without resamples. All arguments are numbers or (R,).

    Args:
        score: the mean, or another score.
        error: its standard error.
        freedom: degrees of freedom: how many values the error is known from, less one.
        skewness: of the mean, as `jackknife_skewness` gives it; 0 = Student's interval as it is.
    """
    score, error, skewness = (np.asarray(each, dtype=float) for each in (score, error, skewness))
    reach = _quantile(freedom)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = (_straighten(end, skewness) for end in (reach, -reach))
    return score - error * low, score - error * high


def share_interval(share: ArrayLike, error: ArrayLike, images: ArrayLike, things: ArrayLike) -> tuple[Array, Array]:
    """Give the ends of Wilson's interval for a share of things that stand together in images.

    It has a width at shares of 0 and 1 as well. The number of independent things that would give the same error takes
    the place of their number (Dean and Pagano 2015, "Evaluating confidence interval methods for binomial proportions
    in clustered surveys", J. Surv. Stat. Methodol. 3). It lies between the number of images, when all things in an
    image are right or wrong together, and the number of things. Where nothing varies, it is the number of images.

    Args:
        share: 0…1.
        error: its standard error.
        images: the effective number of images, (Σ things)² / Σ things² where they hold unequally many.
        things: how many there are in all images.
    """
    share, error, images = (np.asarray(each, dtype=float) for each in (share, error, images))
    reach = _quantile(np.maximum(images - 1, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        count = np.clip(share * (1 - share) / error**2, images, np.maximum(images, things))
        count = np.where(error > 0, count, np.where(np.isnan(error), np.nan, images))
        part = reach**2 / count
        centre = (share + part / 2) / (1 + part)
        half = np.sqrt(part * share * (1 - share) + part**2 / 4) / (1 + part)
    return centre - half, centre + half


def share_difference_interval(
    difference: ArrayLike, changes: Array, images: ArrayLike, things: ArrayLike
) -> tuple[Array, Array]:
    """Give the ends of the interval of a paired difference of two shares.

    As if there were two more things, of which one is right in the first and wrong in the second alone, and the other
    the other way round (Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data", J. Educ. Behav. Stat. 37). So there is a width where nothing tells the two apart.

    Args:
        difference: -1…1.
        changes: of the difference by leaving out each image, (n, R).
        images: their effective number, as in `share_interval`.
        things: how many there are in all images; of a mean over layers, in all layers.
    """
    difference, images = np.asarray(difference, dtype=float), np.asarray(images, dtype=float)
    step = images / things  # what a thing adds to the value of its image
    centre = images / (images + 2) * difference
    own = (images - 1) * images * jackknife_error(changes, images) ** 2  # the sum of squares of as many values
    squares = own + images * (difference - centre) ** 2 + (step - centre) ** 2 + (step + centre) ** 2
    return mean_interval(centre, np.sqrt(squares / ((images + 2) * (images + 1))), np.maximum(images - 1, 1))


def _quantile(freedom: ArrayLike) -> Array:
    from scipy.special import stdtrit  # whose import takes longer than reading scores that are there

    return np.asarray(stdtrit(np.asarray(freedom, dtype=float), (1 + CONFIDENCE) / 2), dtype=np.float64)


def _straighten(end: Array, skewness: Array) -> Array:
    """Invert Hall's transformation x + g x² / 3 + g² x³ / 27 + g / 6, with g the skewness of the mean."""
    flat = np.abs(skewness) < 1e-6  # below which the formula loses all digits
    g = np.where(flat, 1.0, skewness)
    return np.where(flat, end, 3 / g * (np.cbrt(1 + g * (end - g / 6)) - 1))
