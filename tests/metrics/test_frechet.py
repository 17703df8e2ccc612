"""Distances between sets of images, against closed forms and other libraries."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.linalg import sqrtm

from innervision.metrics.frechet import frechet_by_image, frechet_distance, kernel_by_image

Array = NDArray[np.float64]


def pairs(images: int, width: int, seed: int = 0) -> tuple[Array, Array]:
    """Draw pairs of correlated Gaussian features, of unequal mean and covariance."""
    rng = np.random.default_rng(seed)
    real = rng.normal(size=(images, width)) * np.linspace(0.5, 2, width)
    return 0.8 * real + 0.5 * rng.normal(size=(images, width)) + 0.2, real


def with_moments(mean: Array, deviations: Array, images: int = 64, seed: int = 0) -> Array:
    """Features whose mean and (diagonal) unbiased covariance are exactly these."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(images, len(mean)))
    values -= values.mean(axis=0)
    orthonormal, _ = np.linalg.qr(values)
    return orthonormal * np.sqrt(images - 1) * deviations + mean


def test_distance_of_gaussians_with_diagonal_covariance_is_the_closed_form() -> None:
    first, second = np.array([1.0, 2.0, 0.5]), np.array([3.0, 0.25, 0.5])
    means = np.array([0.0, 1.0, -1.0]), np.array([2.0, 1.0, 0.0])
    drawn, real = with_moments(means[0], first, seed=1), with_moments(means[1], second, images=50, seed=2)
    expected = ((means[0] - means[1]) ** 2).sum() + ((first - second) ** 2).sum()
    assert frechet_distance(drawn, real) == pytest.approx(expected, rel=1e-12)


def test_distance_agrees_with_the_root_of_the_product_of_covariances() -> None:
    drawn, real = pairs(300, 40)
    covariances = np.cov(drawn, rowvar=False), np.cov(real, rowvar=False)
    root = np.asarray(sqrtm(covariances[0] @ covariances[1])).real
    shift = drawn.mean(axis=0) - real.mean(axis=0)
    expected = shift @ shift + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(drawn, real) == pytest.approx(expected, rel=1e-10)


def test_distance_agrees_with_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")

    class AsTheyAre(torch.nn.Module):
        num_features = 12

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

    drawn, real = pairs(100, 12)
    metric = fid.FrechetInceptionDistance(AsTheyAre(), normalize=True, input_img_size=(3, 2, 2)).set_dtype(
        torch.float64
    )
    metric.update(torch.from_numpy(real).reshape(-1, 3, 2, 2), real=True)
    metric.update(torch.from_numpy(drawn).reshape(-1, 3, 2, 2), real=False)
    assert frechet_distance(drawn, real) == pytest.approx(metric.compute().item(), rel=1e-8)


@pytest.mark.parametrize(
    "name", ["full_rank", "same_cov_shift", "zero_columns", "relu_like", "singular_n20", "singular_n20_vs_full"]
)
def test_distance_equals_known_numbers(shared: Path, name: str) -> None:
    activations = load_file(shared / "golden/metrics/fid_activations.safetensors")
    expected = json.loads((shared / "golden/metrics/fid.json").read_text())["results"][name]["fid"]
    # the known numbers for fewer images than features have the digits that a root of singular matrices keeps
    tolerance = 5e-8 if name.startswith("singular") else 1e-11
    distance = frechet_distance(activations[f"{name}.a"], activations[f"{name}.b"])
    assert distance == pytest.approx(expected, rel=tolerance)


def test_distance_of_a_set_to_itself_is_zero_however_few_its_images() -> None:
    for images in (2, 5, 100):
        features = pairs(images, 20)[1]
        assert frechet_distance(features, features) == pytest.approx(0, abs=1e-11)
        np.testing.assert_allclose(frechet_by_image(features, features), 0, atol=1e-9)


def test_sets_without_spread_are_as_far_apart_as_their_means() -> None:
    drawn, real = np.full((5, 3), 0.3), np.full((7, 3), 0.5)
    assert frechet_distance(drawn, real) == pytest.approx(3 * 0.2**2)
    assert frechet_by_image(drawn, real[:5]) == pytest.approx(np.full(5, 3 * 0.2**2))


@pytest.mark.parametrize(("images", "width"), [(50, 8), (8, 50), (30, 30), (2, 5)])
def test_mean_over_images_is_the_distance(images: int, width: int) -> None:
    drawn, real = pairs(images, width)
    by_image = frechet_by_image(drawn, real)
    assert by_image.shape == (images,)
    assert by_image.mean() == pytest.approx(frechet_distance(drawn, real), rel=1e-10)


def distance_of_weighted(drawn: Array, real: Array, weights: Array) -> float:
    """Measure between weighted Gaussians."""
    moments = []
    for features in (drawn, real):
        mean = weights @ features
        rows = np.sqrt(weights * len(features) / (len(features) - 1))[:, None] * (features - mean)
        moments.append((mean, rows))
    (mean, rows), (other_mean, other_rows) = moments
    shared = np.linalg.svd(rows @ other_rows.T, compute_uv=False).sum()
    shift = mean - other_mean
    return float(shift @ shift + (rows**2).sum() + (other_rows**2).sum() - 2 * shared)


@pytest.mark.parametrize(("images", "width", "alike"), [(24, 6, 0.8), (12, 30, 0.8), (12, 30, 0.0)])
def test_values_are_slopes_by_weight_with_the_spread_of_the_jackknife_less_that_of_pairs(
    images: int, width: int, alike: float
) -> None:
    """Against first and second finite differences of the distance between weighted Gaussians."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(images, width)) * np.linspace(0.5, 2, width)
    drawn = (
        alike * real + np.sqrt(1 - alike**2) * rng.normal(size=real.shape) * np.linspace(0.5, 2, width) + 0.2 * alike
    )
    uniform, step = np.full(images, 1 / images), 1e-3 / images
    towards = step * (np.eye(images) - uniform)

    def distance(change: Array) -> float:
        return distance_of_weighted(drawn, real, uniform + change)

    slopes = np.array([distance(each) - distance(-each) for each in towards]) / (2 * step)
    bends = np.array(
        [
            distance(one + other) - distance(one - other) - distance(other - one) + distance(-one - other)
            for number, one in enumerate(towards)
            for other in towards[:number]
        ]
    ) / (4 * step**2)
    jackknife = (slopes**2).sum() / images / (images - 1)
    share = max(1 - ((bends - bends.mean()) ** 2).sum() / images**4 / jackknife, 0.5)
    assert share < 0.97
    found = frechet_by_image(drawn, real) - distance(np.zeros(images))
    np.testing.assert_allclose(found, slopes * np.sqrt(share), rtol=1e-4, atol=1e-4 * found.std())


def test_spread_agrees_with_efron_and_steins_over_sets_without_one_and_two_images() -> None:
    """Their variance is of a statistic of n - 1 images; leaving out is a large change of few images, so to a tenth."""
    drawn, real = pairs(30, 4)
    images = len(real)
    whole = frechet_distance(drawn, real)
    without = np.empty((images, images))
    for one in range(images):
        for other in range(one + 1):
            left = np.delete(np.arange(images), [one, other])
            without[one, other] = frechet_distance(drawn[left], real[left])
    alone = np.diag(without)
    jackknife = (images - 1) / images * np.square(alone - alone.mean()).sum()
    one, other = np.tril_indices(images, -1)
    q = images * whole - (images - 1) * (alone[one] + alone[other]) + (images - 2) * without[one, other]
    pairs_alone = np.square(q - q.mean()).sum() / images / (images - 1)
    assert pairs_alone > 0.1 * jackknife
    told = frechet_by_image(drawn, real).var(ddof=1) / images
    assert told == pytest.approx(jackknife - pairs_alone, rel=0.1)


def test_groups_of_images_tell_the_spread_as_single_images_do(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    drawn, real = rng.normal(size=(2, 150, 20))
    grouped = frechet_by_image(drawn, real).std()
    monkeypatch.setattr("innervision.metrics.frechet.GROUPS", 150)
    single = frechet_by_image(drawn, real).std()
    monkeypatch.setattr("innervision.metrics.frechet.GROUPS", 2)  # one pair, which has no spread
    uncorrected = frechet_by_image(drawn, real).std()
    assert single < 0.85 * uncorrected
    assert grouped == pytest.approx(single, rel=0.05)  # the squares of 496 pairs are known to 6%


@pytest.mark.parametrize("by_image", [frechet_by_image, kernel_by_image])
@pytest.mark.parametrize(("images", "width"), [(200, 4), (60, 40)])
def test_spread_over_images_tells_the_spread_of_the_distance_over_data_sets(by_image, images: int, width: int) -> None:
    values = [by_image(*pairs(images, width, seed)) for seed in range(200)]
    truth = np.std([value.mean() for value in values])
    told = np.mean([value.std(ddof=1) / np.sqrt(images) for value in values])
    assert told == pytest.approx(truth, rel=0.15)  # the deviation of 200 numbers is known to 5%


def test_kernel_distance_of_pairs_agrees_with_torch_fidelitys_u_statistic() -> None:
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    drawn, real = pairs(30, 7)
    kernels = [metric_kid.kernel_poly(a, b) for a, b in ((drawn, drawn), (drawn, real), (real, real))]
    expected = metric_kid.mmd2(*kernels, mmd_est="u-statistic")
    assert kernel_by_image(drawn, real).mean() == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_over_pairs_from_one_distribution_is_zero_on_average() -> None:
    """Also where the two of a pair are alike, which an estimate for independent sets would take for closeness."""
    rng = np.random.default_rng(0)
    unbiased = []
    for _ in range(300):
        real = rng.normal(size=(20, 6))
        drawn = 0.8 * real + 0.6 * rng.normal(size=(20, 6))  # the same covariance
        unbiased.append(kernel_by_image(drawn, real).mean())
    error = np.std(unbiased) / np.sqrt(300)
    assert abs(np.mean(unbiased)) < 3 * error


@pytest.mark.parametrize("by_image", [frechet_by_image, kernel_by_image])
def test_blocks_sum_to_the_whole(by_image, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, real = pairs(31, 5)
    whole = by_image(drawn, real)
    monkeypatch.setattr("innervision.metrics.frechet.BLOCK", 100)
    np.testing.assert_allclose(by_image(drawn, real), whole, rtol=1e-12)


def test_nan_makes_every_score_nan() -> None:
    drawn, real = pairs(10, 3)
    drawn[4, 1] = np.nan
    assert np.isnan(frechet_distance(drawn, real))
    assert np.isnan(frechet_by_image(drawn, real)).all()
    assert np.isnan(kernel_by_image(drawn, real).mean())


def test_sets_that_cannot_be_compared_are_refused() -> None:
    drawn, real = pairs(10, 3)
    for distance in (frechet_distance, frechet_by_image, kernel_by_image):
        with pytest.raises(ValueError, match="at least two images"):
            distance(drawn[:1], real[:1])
        with pytest.raises(ValueError, match="features of shape"):
            distance(drawn[:, :2], real)
    for by_image in (frechet_by_image, kernel_by_image):
        with pytest.raises(ValueError, match="equally many, not 9 and 10"):
            by_image(drawn[:9], real)
