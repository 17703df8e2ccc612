import time

import numpy as np
import pytest
from scipy import stats

from innervision.metrics import interval
from innervision.metrics.interval import bootstrap_interval


def random_values(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(0.6, 0.1, size=shape)


@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_the_interval_equals_scipys_on_the_same_resamples(confidence):
    values = random_values(200)
    low, high = bootstrap_interval(values, confidence, resamples=500, seed=3)
    expected = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=500,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_is_near_the_normal_one():
    values = random_values(2000)
    low, high = bootstrap_interval(values)
    error = values.std(ddof=1) / np.sqrt(len(values))
    # each end of 1000 resamples is known to about 0.08 standard errors
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.35 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.35 * error)


def test_the_interval_holds_the_true_mean_as_often_as_it_says():
    experiments = np.random.default_rng(1).normal(size=(100, 400))  # 400 experiments of 100 images
    low, high = bootstrap_interval(experiments, confidence=0.9)
    covered = ((low < 0) & (high > 0)).mean()
    assert covered == pytest.approx(0.9, abs=0.06)


def test_trailing_entries_share_the_resamples():
    values = random_values(50)
    low, high = bootstrap_interval(np.stack([values, values + 1, -values], axis=1))
    assert low[1] - low[0] == pytest.approx(1)
    assert high[1] - high[0] == pytest.approx(1)
    assert low[2] == pytest.approx(-high[0])


def test_each_entry_is_what_it_is_alone():
    values = random_values(40, 3, 2)
    low, high = bootstrap_interval(values)
    assert low.shape == high.shape == (3, 2)
    alone_low, alone_high = bootstrap_interval(values[:, 2, 1])
    np.testing.assert_allclose([low[2, 1], high[2, 1]], [alone_low, alone_high], rtol=1e-14)


def test_blocks_do_not_change_the_result(monkeypatch):
    values = random_values(30, 2)
    whole = bootstrap_interval(values, resamples=100)
    monkeypatch.setattr(interval, "BLOCK", 7 * 30)
    np.testing.assert_allclose(bootstrap_interval(values, resamples=100), whole, rtol=1e-14)


def test_the_seed_decides():
    values = random_values(30)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_equal_values_have_no_width():
    low, high = bootstrap_interval(np.full((20, 2), 0.25))
    np.testing.assert_allclose([low, high], 0.25, rtol=1e-14)


def test_one_image_has_no_interval():
    low, high = bootstrap_interval(np.array([[0.5, 0.6]]))
    assert np.isnan(low).all()
    assert np.isnan(high).all()
    assert low.shape == (2,)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval(np.array([0.1, bad, 0.3]))


def test_no_image_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        bootstrap_interval(np.empty((0, 4)))


def test_a_whole_table_takes_a_moment():
    started = time.perf_counter()
    bootstrap_interval(random_values(5000, 33, 4))
    assert time.perf_counter() - started < 10
