"""Intervals against closed forms and SciPy; whether they hold is simulated in `tests/report/test_coverage.py`."""

import numpy as np
import pytest
from scipy import stats

from innervision.metrics.interval import (
    jackknife_error,
    jackknife_skewness,
    mean_interval,
    share_difference_interval,
    share_interval,
)


def changes_of(values: np.ndarray) -> np.ndarray:
    """How much the mean changes when each value is left out, one by one."""
    return np.array([np.delete(values, i).mean() - values.mean() for i in range(len(values))])[:, None]


VALUES = np.random.default_rng(7).gamma(2.0, size=12)


def test_the_error_of_a_mean_is_the_standard_error() -> None:
    assert jackknife_error(changes_of(VALUES), 12) == pytest.approx(stats.sem(VALUES))


def test_the_skewness_of_a_mean_is_that_of_the_values_over_the_root_of_their_number() -> None:
    expected = stats.skew(VALUES, bias=False) / np.sqrt(12)
    assert jackknife_skewness(changes_of(VALUES), 12) == pytest.approx(expected)


def test_values_that_do_not_vary_have_no_skewness_and_no_width() -> None:
    changes = np.zeros((6, 1))
    assert jackknife_skewness(changes, 6) == 0
    low, high = mean_interval(0.25, jackknife_error(changes, 6), 5, jackknife_skewness(changes, 6))
    assert (low, high) == (0.25, 0.25)


def test_without_skewness_it_is_students_interval() -> None:
    expected = stats.ttest_1samp(VALUES, 0).confidence_interval(0.95)
    assert mean_interval(VALUES.mean(), stats.sem(VALUES), 11) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("skewness", [-0.9, -0.1, 1e-4, 0.4])
def test_its_ends_are_where_halls_transformation_reaches_the_quantiles(skewness: float) -> None:
    low, high = mean_interval(2.0, 0.3, 20, skewness)
    for end, quantile in ((low, 0.975), (high, 0.025)):
        x = (2.0 - end) / 0.3
        straight = x + skewness * x**2 / 3 + skewness**2 * x**3 / 27 + skewness / 6
        assert straight == pytest.approx(stats.t.ppf(quantile, 20), rel=1e-6)


def test_the_share_of_things_that_stand_alone_has_wilsons_interval() -> None:
    count = 200_000  # so many that Student's quantile is the normal one
    share = 0.93
    expected = stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
    found = share_interval(share, np.sqrt(share * (1 - share) / count), count, count)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_a_share_of_all_has_a_width() -> None:
    quantile = stats.t.ppf(0.975, 49)
    assert share_interval(1.0, 0.0, 50, 125) == pytest.approx((50 / (50 + quantile**2), 1))
    assert share_interval(0.0, 0.0, 50, 125) == pytest.approx((0, quantile**2 / (50 + quantile**2)))


def test_things_count_for_at_least_one_an_image_and_at_most_each() -> None:
    widths = [np.diff(share_interval(0.8, error, 50, 125)).item() for error in (1e-6, 0.04, 1.0)]
    alone = [np.diff(share_interval(0.8, np.sqrt(0.16 / count), 50, count)).item() for count in (125, 50)]
    assert widths[0] == pytest.approx(alone[0])
    assert widths[2] == pytest.approx(alone[1])
    assert widths[0] < widths[1] < widths[2]


def test_a_difference_of_shares_is_students_with_two_more_pairs() -> None:
    """30 images of one pair: 4 are right in the first alone, 1 in the second alone."""
    values = np.array([1.0] * 4 + [-1.0] + [0.0] * 25)
    more = np.append(values, [1, -1])
    error = stats.sem(more)
    quantile = stats.t.ppf(0.975, 29)
    expected = more.mean() - quantile * error, more.mean() + quantile * error
    found = share_difference_interval([values.mean()], changes_of(values), 30, 30)
    assert np.ravel(found) == pytest.approx(expected)


def test_shares_that_nothing_tells_apart_differ_by_little_but_not_by_nothing() -> None:
    low, high = share_difference_interval([0.0], np.zeros((40, 1)), 40, 100)
    assert low == -high
    assert 0 < high < 0.05
