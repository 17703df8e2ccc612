"""How far a set of drawn images is from a set of real ones, in the feature space of a vision model.

Features are arrays (images, d); one row describes one image. Everything is computed in float64. Where a feature is
NaN or infinite, so are the scores.

Both distances are of sets: they do not see which drawn image belongs to which real one. Where the two sets are paired
(row i of both comes from image i), the functions `…_by_image` share a distance out among the images: one value per
image, whose mean is exactly the distance, and whose spread gives the interval of what the distance is expected to be
over as many images. A value is the distance plus the image's influence on it (the infinitesimal jackknife of Efron and
Tibshirani 1993, ch. 21). Measuring the distance anew without each image, or over resamples, would cost a decomposition
each time; and a resample repeats images, which makes its covariance too narrow and its distance too large.

The jackknife counts twice what images add to the variance in pairs. Of a Fréchet distance over few images this is
much; where images are drawn as well as real, it is nearly all. So the influences on it are made smaller, until their
spread is that of the jackknife less what the pairs add (Efron and Stein 1981, "The jackknife estimate of variance",
Ann. Stat. 9, 586-596).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]
BLOCK = 2**22
"""Most kernel values, or entries of matrices of features, computed at a time (32 MiB)."""
GROUPS = 32
"""Of more images, groups of images stand for images where pairs are counted: the cost grows with their number."""


def frechet_distance(drawn: Features, real: Features) -> float:
    """Fréchet distance of the two Gaussians with the sets' means and covariances: on Inception features, the FID.

    |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½), Heusel et al. 2017, https://arxiv.org/abs/1706.08500, with unbiased
    covariances. It is biased upwards, by about as much as one over the number of images: compare only distances over
    equally many. 0 for the same set.

    Raises:
        ValueError: a set has fewer than two images, or the sets differ in their number of features.
    """
    return _frechet(drawn, real)[0]


def frechet_by_image(drawn: Features, real: Features) -> NDArray[np.float64]:
    """Share `frechet_distance` out among the n images of paired sets: (n,), with the distance as its mean.

    Raises:
        ValueError: as `frechet_distance`, or the sets are not equally many.
    """
    _require_pairs(drawn, real)
    distance, first, second = _frechet(drawn, real)
    if np.isnan(distance):
        return np.full(len(first.rows), np.nan)
    influence = first.influence + second.influence
    jackknife = np.square(influence).sum() / len(influence) / (len(influence) - 1)
    # which is at most twice the variance, where pairs are all that there is
    variance = max(jackknife - _variance_of_pairs(first, second), jackknife / 2)
    return distance + influence * (np.sqrt(variance / jackknife) if jackknife > 0 else 1)


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


class _Side(NamedTuple):
    """One of two sets whose distance is measured."""

    rows: NDArray[np.float64]
    """The centred set over √(n - 1), (n, d): Σ = rowsᵀ rows."""
    root: NDArray[np.float64]
    """In coordinates in which both sets have the covariance S = (Σ₁ Σ₂)^½, diagonal: (n, r), S = rootᵀ root."""
    influence: NDArray[np.float64]
    """How much each image moves the distance, (n,): its derivative by the image's weight in the set. The sum is 0."""


def _frechet(drawn: Features, real: Features) -> tuple[float, _Side, _Side]:
    drawn, real = _sets(drawn, real)
    if not (np.isfinite(drawn).all() and np.isfinite(real).all()):  # which no decomposition takes
        sides = [_Side(features, features, np.full(len(features), np.nan)) for features in (drawn, real)]
        return np.nan, sides[0], sides[1]
    means = drawn.mean(axis=0), real.mean(axis=0)
    rows = [(set_ - mean) / np.sqrt(len(set_) - 1) for set_, mean in zip((drawn, real), means, strict=True)]
    (first, first_factor), (second, second_factor) = (np.linalg.qr(each) for each in rows)
    # tr (Σ₁ Σ₂)^½ is the sum of the singular values of factor₁ factor₂ᵀ. Unlike the root of a product of
    # covariances, these lose no digits where there are fewer images than features.
    left, singular, right = np.linalg.svd(first_factor @ second_factor.T, full_matrices=False)
    shift = means[0] - means[1]
    distance = shift @ shift + np.square(rows[0]).sum() + np.square(rows[1]).sum() - 2 * singular.sum()
    return (
        float(distance),
        _side(rows[0], first @ left * np.sqrt(singular), shift),
        _side(rows[1], second @ right.T * np.sqrt(singular), -shift),
    )


def _side(rows: NDArray[np.float64], root: NDArray[np.float64], shift: NDArray[np.float64]) -> _Side:
    """Find the influence of each image; `shift` is the mean of its set less that of the other, (d,)."""
    of_mean = 2 * np.sqrt(len(rows) - 1) * (rows @ shift)
    # With weights w the set's centred rows become √w times as long. The trace grows by a row's squared length; the
    # sum of the singular values by half of that of the row of the root, and counts twice.
    spread = np.square(rows).sum(axis=1) - np.square(root).sum(axis=1)
    return _Side(rows, root, of_mean + len(rows) * spread - spread.sum())


def _variance_of_pairs(first: _Side, second: _Side) -> float:
    """Estimate how much variance images add to the distance in pairs, beyond what each adds alone.

    It is Σ (Qᵢⱼ - mean Q)² / n⁴ over all pairs, with Q the second derivatives of the distance by the images' weights.
    In the coordinates of the roots, let the covariances of the two sets grow by E₁ and E₂. Then, to second order,
    tr (Σ₁ Σ₂)^½ = tr (S + (E₁ + E₂) / 2) - ¼ Σ (E₁ - E₂)²ₖₗ / (Sₖₖ + Sₗₗ).

    The weights of a group of images are changed together: what two groups add in pairs has the variance that their
    pairs of images have together, as long as these are independent. What stands within a group is not counted.
    """
    images, groups = len(first.rows), min(GROUPS, len(first.rows))
    member = [slice(start, None, groups) for start in range(groups)]  # not side by side, which may be alike

    def products(values: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = np.array([values[each].sum(axis=0) for each in member])
        return sums @ sums.T  # (groups, groups)

    slopes = 2 * (images - 1) * products(first.rows - second.rows)
    slopes -= 2 * images * (products(first.rows) + products(second.rows))  # a mean that moves takes from the covariance
    slopes += 2 * images * (products(first.root) + products(second.root))
    variances = np.square(first.root).sum(axis=0)  # S, falling
    kept = int((variances > variances.max() * images * np.finfo(float).eps).sum())
    lines = max(1, BLOCK // max(1, groups * kept))
    for start in range(0, kept, lines):
        line = slice(start, min(start + lines, kept))
        growth = np.stack(
            [
                first.root[each, line].T @ first.root[each, :kept]
                - second.root[each, line].T @ second.root[each, :kept]
                for each in member
            ]
        )  # (groups, lines, r)
        growth /= np.sqrt(variances[line, None] + variances[None, :kept])
        flat = images * growth.reshape(groups, -1)
        slopes += flat @ flat.T
    between = slopes[np.triu_indices(groups, 1)]
    return float(np.square(between - between.mean()).sum() / images**4)


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
