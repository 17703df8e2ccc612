"""How far a set of drawn images is from a set of real ones, in the feature space of a vision model.

Features are arrays (images, d); one row describes one image. Everything is computed in float64. Where a feature is
NaN or infinite, so are the scores.

Both distances are of sets: they do not see which drawn image belongs to which real one. Where the two sets are paired
(row i of both comes from image i), the functions `…_by_image` share a distance out among the images: one value per
image, whose mean is exactly the distance, and whose spread gives the interval of what the distance is expected to be
over as many images. A value is the distance plus the image's influence on it (the infinitesimal jackknife of Efron and
Tibshirani 1993, ch. 21). Measuring the distance anew without each image, or over resamples, would cost a decomposition
each time; and a resample repeats images, which makes its covariance too narrow and its distance too large.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]
BLOCK = 2**24
"""Most kernel values held at a time (128 MiB)."""


def frechet_distance(drawn: Features, real: Features) -> float:
    """Fréchet distance of the two Gaussians with the sets' means and covariances: on Inception features, the FID.

    |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½), Heusel et al. 2017, https://arxiv.org/abs/1706.08500, with unbiased
    covariances. It is biased upwards, by about as much as one over the number of images: compare only distances over
    equally many. 0 for the same set.

    Raises:
        ValueError: a set has fewer than two images, or the sets differ in their number of features.
    """
    return _frechet(drawn, real).distance


def frechet_by_image(drawn: Features, real: Features) -> NDArray[np.float64]:
    """Share `frechet_distance` out among the n images of paired sets: (n,), with the distance as its mean.

    Raises:
        ValueError: as `frechet_distance`, or the sets are not equally many.
    """
    _require_pairs(drawn, real)
    distance, of_drawn, of_real = _frechet(drawn, real)
    return distance + of_drawn + of_real


def kernel_by_image(drawn: Features, real: Features) -> NDArray[np.float64]:
    """Share the kernel distance out among the n images of paired sets: (n,), with the distance as its mean.

    It is the squared maximum mean discrepancy under the kernel (x·y / d + 1)³: on Inception features, the KID
    (Bińkowski et al. 2018, https://arxiv.org/abs/1801.01401), over all pairs of images at once, where other tools
    average over subsets drawn at random. It is unbiased for pairs, so it may fall below 0: a drawn image is compared
    with all real ones but its own (Gretton et al. 2012, eq. 4, https://jmlr.org/papers/v13/gretton12a.html).

    Raises:
        ValueError: as `frechet_by_image`.
    """
    _require_pairs(drawn, real)
    first, second = _sets(drawn, real)
    with_others = _kernel_with_others(first, first) + _kernel_with_others(second, second)
    with_others -= _kernel_with_others(first, second) + _kernel_with_others(second, first)
    return 2 * with_others - with_others.mean()


class _Distance(NamedTuple):
    """A distance, and how much each image of the two sets moves it: influences, which sum to 0."""

    distance: float
    of_drawn: NDArray[np.float64]  # (n,)
    of_real: NDArray[np.float64]  # (m,)


class _Gaussian(NamedTuple):
    """Mean and spread of a set. `basis @ factor` is the centred set over √(n - 1), so Σ = factorᵀ factor."""

    mean: NDArray[np.float64]  # (d,)
    basis: NDArray[np.float64]  # (n, k), orthonormal columns, k = min(n, d)
    factor: NDArray[np.float64]  # (k, d)


def _frechet(drawn: Features, real: Features) -> _Distance:
    drawn, real = _sets(drawn, real)
    if not (np.isfinite(drawn).all() and np.isfinite(real).all()):  # which no decomposition takes
        return _Distance(np.nan, np.full(len(drawn), np.nan), np.full(len(real), np.nan))
    first, second = _gaussian(drawn), _gaussian(real)
    # tr (Σ₁ Σ₂)^½ is the sum of the singular values of factor₁ factor₂ᵀ. Unlike the root of a product of
    # covariances, these lose no digits where there are fewer images than features.
    left, singular, right = np.linalg.svd(first.factor @ second.factor.T, full_matrices=False)
    shift = first.mean - second.mean
    shared = 2 * singular.sum()
    distance = shift @ shift + np.square(first.factor).sum() + np.square(second.factor).sum() - shared
    return _Distance(
        float(distance),
        _influence(drawn, first, shift, left * np.sqrt(singular)),
        _influence(real, second, -shift, right.T * np.sqrt(singular)),
    )


def _gaussian(features: Features) -> _Gaussian:
    mean = features.mean(axis=0)
    return _Gaussian(mean, *np.linalg.qr((features - mean) / np.sqrt(len(features) - 1)))


def _influence(features: Features, gaussian: _Gaussian, shift: NDArray, root: NDArray) -> NDArray[np.float64]:
    """Derivative of the distance by each image's weight in its set.

    Args:
        features: (n, d), the set.
        gaussian: of the set.
        shift: its mean less that of the other set, (d,).
        root: the singular vectors of its side, each times the root of its value, (k, r).
    """
    of_mean = 2 * (features - gaussian.mean) @ shift
    # With weights w the set's centred rows become √w times as long. The trace grows by a row's squared length; the
    # sum of the singular values by half of (M Mᵀ)^½ at that row (M: the two centred sets' products), and counts twice.
    spread = np.square(gaussian.basis @ gaussian.factor).sum(axis=1) - np.square(gaussian.basis @ root).sum(axis=1)
    return of_mean + len(features) * spread - spread.sum()


def _kernel_with_others(features: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean kernel of each image with the images of a paired set, its own left out: (n,)."""
    own = ((features * others).mean(axis=1) + 1) ** 3
    return (_sum_kernel(features, others) - own) / (len(features) - 1)


def _sum_kernel(features: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over `others` of each image's kernel with them: (n,)."""
    rows = max(1, BLOCK // len(others))
    blocks = [features[start : start + rows] for start in range(0, len(features), rows)]
    return np.concatenate([((block @ others.T / others.shape[1] + 1) ** 3).sum(axis=1) for block in blocks])


def _sets(drawn: Features, real: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if min(len(drawn), len(real)) < 2:
        raise ValueError(f"a distance needs at least two images in each set, not {len(drawn)} and {len(real)}")
    if drawn.shape[1:] != real.shape[1:]:
        raise ValueError(f"the sets have features of shape {drawn.shape[1:]} and {real.shape[1:]}")
    return np.asarray(drawn, dtype=np.float64), np.asarray(real, dtype=np.float64)


def _require_pairs(drawn: Features, real: Features) -> None:
    if len(drawn) != len(real):
        raise ValueError(f"paired sets are equally many, not {len(drawn)} and {len(real)}")
