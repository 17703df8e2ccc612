"""Scores over images, weighted and by group, and how they change when an image is left out."""

from string import ascii_lowercase

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import jaccard_score

from innervision.errors import InnerVisionError
from innervision.metrics.segmentation import count_pixels, overlap
from innervision.report.jackknife import Series, difference, jackknife


def rows(values, weights=None, groups=None, *, layer=1, metric="accuracy", images=ascii_lowercase) -> pd.DataFrame:
    count = len(values)
    return pd.DataFrame(
        {
            "image": list(images[:count]),
            "target": "depth",
            "layer": pd.array([layer] * count, dtype="Int64"),
            "source": "probe",
            "metric": metric,
            "protocol": "standard",
            "value": np.array(values, dtype=float),
            "group": groups,
            "weight": 1.0 if weights is None else np.array(weights, dtype=float),
        }
    )


def only(table: pd.DataFrame) -> Series:
    [series] = jackknife(table)
    return series


def place(found: Series, group: str | None = None, layer: int | None = 1) -> int:
    chosen = found.rows["group"].isna() if group is None else found.rows["group"].eq(group)
    chosen &= found.rows["layer"].isna() if layer is None else found.rows["layer"].eq(layer).fillna(False)
    [number] = np.flatnonzero(chosen)
    return number


def score(found: Series, group: str | None = None, layer: int | None = 1) -> float:
    return found.score[place(found, group, layer)]


def test_a_score_is_the_mean_weighted_by_pairs() -> None:
    """One of one and two of four right: three of five."""
    assert score(only(rows([1.0, 0.5], [1, 4]))) == pytest.approx(3 / 5)


def test_groups_are_scored_apart_and_rows_without_one_are_the_whole() -> None:
    table = pd.concat([rows([1.0, 0.5, 0.0], [1, 4, 2]), rows([1.0, 0.5, 0.0], [1, 4, 2], ["in", "out", "in"])])
    found = only(table)
    assert score(found) == pytest.approx(3 / 7)
    assert score(found, "in") == pytest.approx(1 / 3)
    assert score(found, "out") == pytest.approx(2 / 4)


def test_where_all_stand_in_groups_the_score_is_the_mean_over_groups() -> None:
    found = only(rows([1.0, 0.5, 0.0], [1, 4, 2], ["cat", "dog", "cat"], metric="miou"))
    assert score(found) == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_a_class_that_is_predicted_but_nowhere_there_does_not_count() -> None:
    found = only(rows([0.5, np.nan], [8, 3], ["cat", "dog"], metric="miou"))
    assert score(found) == 0.5
    assert set(found.rows["group"].dropna()) == {"cat"}


def test_a_wrong_prediction_in_another_image_weighs_on_the_class() -> None:
    found = only(rows([0.5, np.nan], [8, 3], ["cat", "cat"], metric="miou"))
    assert score(found) == pytest.approx(4 / 11)


def test_the_average_is_over_the_decoder_layers_alone() -> None:
    first = {0: 0.9, 1: 0.1, 2: 0.5}
    table = pd.concat([rows([value, 0.5], [1, 3], layer=layer) for layer, value in first.items()])
    expected = np.mean([(x + 1.5) / 4 for x in (0.1, 0.5)])
    assert score(only(table), layer=None) == pytest.approx(expected)


def test_every_change_is_that_of_the_score_without_the_image() -> None:
    """The mIoU without each image is computed anew by scikit-learn from the pixels of the others."""
    rng = np.random.default_rng(3)
    images, names, parts = 6, ["cat", "dog", "sky"], []
    truths = [rng.choice([0, 1, 255] if i < 5 else [0, 2], (9, 9)).astype(np.uint8) for i in range(images)]
    predictions = [rng.integers(0, 3, (9, 9)) for _ in range(images)]
    for i, (prediction, truth) in enumerate(zip(predictions, truths, strict=True)):
        found = overlap(count_pixels(torch.from_numpy(prediction), torch.from_numpy(truth), 3))
        for label, (intersection, union, there) in enumerate(zip(*(x.tolist() for x in found), strict=True)):
            value = intersection / union if there else np.nan
            parts.append(rows([value], [union], [names[label]], metric="miou", images=ascii_lowercase[i]))
    series = only(pd.concat(parts))

    def iou(chosen: list[int]) -> np.ndarray:
        truth = np.concatenate([truths[i].ravel() for i in chosen])
        prediction = np.concatenate([predictions[i].ravel() for i in chosen])[truth != 255]
        truth = truth[truth != 255]
        return jaccard_score(truth, prediction, labels=np.unique(truth), average=None)

    everything = list(range(images))
    assert score(series) == pytest.approx(iou(everything).mean(), rel=1e-12)
    for left_out in everything:
        others = iou([i for i in everything if i != left_out])  # the last image alone has the sky
        expected = others.mean() - iou(everything).mean()
        assert series.changes[left_out, place(series)] == pytest.approx(expected, rel=1e-9, abs=1e-12)
        cat = series.changes[left_out, place(series, "cat")]
        assert cat == pytest.approx(others[0] - iou(everything)[0], rel=1e-9, abs=1e-12)


SYMMETRIC = np.array([-3, -2, -1, -0.5, 0, 0, 0.5, 1, 2, 3]) + 5
"""Their skewness is 0, so their interval is Student's."""


def test_values_without_skewness_have_students_interval() -> None:
    expected = stats.ttest_1samp(SYMMETRIC, 0).confidence_interval(0.95)
    low, high = only(rows(SYMMETRIC)).interval(share=False)
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high))


def test_images_of_equal_weight_give_the_same_whatever_the_weight() -> None:
    heavy, light = (only(rows(SYMMETRIC**2, [weight] * 10)).interval(share=False) for weight in (7.0, 1.0))
    np.testing.assert_allclose(heavy, light, rtol=1e-12)


def test_only_images_that_have_a_group_count_for_it() -> None:
    """The interval of a class that 6 of 10 images have is that of 6 images."""
    six = [*np.linspace(0.2, 0.8, 6), *[np.nan] * 4]
    many = pd.concat([rows(six, groups=["cat"] * 10), rows(SYMMETRIC / 10, groups=["dog"] * 10)])
    many.loc[many["value"].isna(), "weight"] = 0
    series = only(many)
    number = place(series, "cat")
    assert series.rows["images"][number] == 6
    expected = stats.ttest_1samp(six[:6], 0).confidence_interval(0.95)
    low, high = series.interval(share=False)
    assert (low[number], high[number]) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("images", "known"), [(1, False), (4, False), (5, True)])
def test_fewer_than_five_images_have_no_interval(images: int, known: bool) -> None:
    values = np.linspace(0.2, 0.8, images)
    for share in (True, False):
        low, high = only(rows(values)).interval(share=share)
        assert np.isfinite([low[0], high[0]]).all() == known
    table = pd.concat([rows(values, groups=["cat"] * images), rows(np.linspace(0, 1, 9), groups=["dog"] * 9)])
    series = only(table)
    low, high = series.interval(share=False)
    assert np.isfinite(low[place(series, "cat")]) == known
    assert np.isfinite(low[place(series, "dog")])
    assert series.rows["rare_groups"][place(series)] == (not known)
    assert series.rows["groups"][place(series)] == 2


def test_the_bias_of_a_ratio_is_the_jackknifes() -> None:
    """(n - 1) times the mean of the scores without each image, less the score."""
    values, weights = np.linspace(0.2, 0.9, 8) ** 2, np.arange(1.0, 9.0)
    series = only(rows(values, weights, ["cat"] * 8))
    whole = np.average(values, weights=weights)
    without = [np.average(np.delete(values, i), weights=np.delete(weights, i)) for i in range(8)]
    assert series.rows["bias"][place(series)] == pytest.approx(7 * (np.mean(without) - whole))


def test_layers_are_averaged_image_by_image() -> None:
    """The two layers cancel in every image, so their average does not vary at all."""
    series = only(pd.concat([rows(SYMMETRIC, layer=1), rows(-SYMMETRIC, layer=2)]))
    low, high = series.interval(share=False)
    number = place(series, layer=None)
    assert (low[number], series.score[number], high[number]) == pytest.approx((0, 0, 0), abs=1e-9)


def test_layers_of_other_images_have_no_average() -> None:
    series = only(pd.concat([rows(SYMMETRIC, layer=1), rows(SYMMETRIC[:8], layer=2)]))
    assert series.rows["layer"].tolist() == [1, 2]
    assert series.rows["images"].tolist() == [10, 8]


def test_values_that_are_not_finite_have_no_interval() -> None:
    for value, expected in ((np.nan, np.nan), (-np.inf, -np.inf)):
        table = pd.concat([rows([*SYMMETRIC[:9], value]), rows(SYMMETRIC, layer=2)])
        series = only(table)
        low, high = series.interval(share=False)
        np.testing.assert_equal(series.score[[0, 2]], [expected] * 2)
        assert np.isnan([low[0], high[0], low[2], high[2]]).all()
        assert np.isfinite([low[1], high[1]]).all()


def test_the_same_score_twice_is_an_error() -> None:
    table = pd.concat([rows(SYMMETRIC), rows([0.1, 0.3])])
    with pytest.raises(InnerVisionError, match="2 scores stand in the table more than once"):
        only(table)


def test_a_difference_is_that_of_the_paired_values() -> None:
    other = SYMMETRIC - np.array([1, 2, 3, 4, 5, 5, 6, 7, 8, 9])
    found = difference(only(rows(SYMMETRIC)), only(rows(other)), share=False).iloc[0]
    expected = stats.ttest_rel(SYMMETRIC, other).confidence_interval(0.95)
    assert found[["low", "high"]].tolist() == pytest.approx([expected.low, expected.high])
    assert found["images"] == 10
