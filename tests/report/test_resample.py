"""Scores over images: weighted, by group, and over resamples of the images."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import jaccard_score

from innervision.metrics.interval import resample_weights
from innervision.metrics.segmentation import count_pixels, overlap
from innervision.report.resample import Resampled, resample


def rows(values, weights=None, groups=None, *, layer=1, metric="accuracy", images="abcdef") -> pd.DataFrame:
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


def score(found: Resampled, group: str | None = None, layer: int | None = 1) -> float:
    chosen = found.rows["group"].isna() if group is None else found.rows["group"].eq(group)
    chosen &= found.rows["layer"].isna() if layer is None else found.rows["layer"].eq(layer).fillna(False)
    [number] = np.flatnonzero(chosen)
    return found.draws[0, number]


def test_a_score_is_the_mean_weighted_by_pairs() -> None:
    """One of one and two of four right: three of five."""
    assert score(resample(rows([1.0, 0.5], [1, 4]))) == pytest.approx(3 / 5)


def test_groups_are_scored_apart_and_rows_without_one_are_the_whole() -> None:
    table = pd.concat([rows([1.0, 0.5, 0.0], [1, 4, 2]), rows([1.0, 0.5, 0.0], [1, 4, 2], ["in", "out", "in"])])
    found = resample(table)
    assert score(found) == pytest.approx(3 / 7)
    assert score(found, "in") == pytest.approx(1 / 3)
    assert score(found, "out") == pytest.approx(2 / 4)


def test_where_all_stand_in_groups_the_score_is_the_mean_over_groups() -> None:
    found = resample(rows([1.0, 0.5, 0.0], [1, 4, 2], ["cat", "dog", "cat"], metric="miou"))
    assert score(found) == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_a_class_that_is_predicted_but_nowhere_there_does_not_count() -> None:
    found = resample(rows([0.5, np.nan], [8, 3], ["cat", "dog"], metric="miou"))
    assert score(found) == 0.5
    assert np.isnan(score(found, "dog"))


def test_a_wrong_prediction_in_another_image_weighs_on_the_class() -> None:
    found = resample(rows([0.5, np.nan], [8, 3], ["cat", "cat"], metric="miou"))
    assert score(found) == pytest.approx(4 / 11)


def test_the_average_is_over_the_decoder_layers_alone() -> None:
    first = {0: 0.9, 1: 0.1, 2: 0.5}
    table = pd.concat([rows([value, 0.5], [1, 3], layer=layer) for layer, value in first.items()])
    expected = np.mean([(x + 1.5) / 4 for x in (0.1, 0.5)])
    assert score(resample(table), layer=None) == pytest.approx(expected)


def test_every_resample_is_the_score_of_its_images() -> None:
    """The mIoU of each resample is computed anew by scikit-learn from the pixels of the images it drew."""
    rng = np.random.default_rng(3)
    images, names, parts = 6, ["cat", "dog", "sky"], []
    truths = [rng.choice([0, 1, 255] if i < 4 else [0, 2], (9, 9)).astype(np.uint8) for i in range(images)]
    predictions = [rng.integers(0, 3, (9, 9)) for _ in range(images)]
    for i, (prediction, truth) in enumerate(zip(predictions, truths, strict=True)):
        found = overlap(count_pixels(torch.from_numpy(prediction), torch.from_numpy(truth), 3))
        for label, (intersection, union, there) in enumerate(zip(*(x.tolist() for x in found), strict=True)):
            value = intersection / union if there else np.nan
            parts.append(rows([value], [union], [names[label]], metric="miou", images="abcdef"[i]))
    drawn = resample(pd.concat(parts), resamples=40)
    [whole] = np.flatnonzero(drawn.rows["group"].isna() & drawn.rows["layer"].notna())
    [weights] = resample_weights(images, 40)
    counts = np.vstack([np.ones(images), np.rint(weights * images)]).astype(int)
    for count, found in zip(counts, drawn.draws[:, whole], strict=True):
        truth = np.concatenate([np.tile(t, (n, 1)) for t, n in zip(truths, count, strict=True)]).ravel()
        prediction = np.concatenate([np.tile(p, (n, 1)) for p, n in zip(predictions, count, strict=True)]).ravel()
        known = truth != 255
        there = np.unique(truth[known])
        expected = jaccard_score(truth[known], prediction[known], labels=there, average=None).mean()
        assert found == pytest.approx(expected, rel=1e-12)


def test_only_the_images_asked_for_count() -> None:
    assert score(resample(rows([1.0, 0.0, 0.5]), images={"a", "c"})) == 0.75
