"""Scores of many images from scores of each: for all of them, and for resamples of them (the bootstrap)."""

import warnings
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from innervision.errors import InnerVisionError
from innervision.metrics.interval import resample_weights

SERIES = ["target", "source", "metric", "protocol"]
"""What tells a series of layers from others."""


class Resampled(NamedTuple):
    """Scores over images."""

    rows: pd.DataFrame
    """What each score is: the columns of `SERIES`, layer, group and images (how many)."""
    draws: NDArray[np.float64]  # (1 + resamples, rows)
    """The scores over all images, and below them those over each resample; NaN for a group that none has."""


def resample(scores: pd.DataFrame, images: Collection[str] | None = None, resamples: int = 1000) -> Resampled:
    """Score every layer of a table, and the average of the decoder layers (1 and up) as a row without a layer.

    A score is the mean of its images' values, weighted where the table has weights. Groups (classes, types of scene)
    are scored apart, and rows without a group are the score of the layer. Where all rows have one, the layer's score
    is the mean over the groups: mIoU is the mean over the classes. A value of NaN in a group says that the image does
    not have the group, though its weight counts (false positives); what no image has is left out.

    All scores over the same images see the same resamples of them, whatever the order of the rows. The average of
    layers is over the images that have them all.

    Args:
        scores: with the columns of `SERIES`, image, layer and value, and in some tables weight and group.
        images: look at these only.
        resamples: how many to draw.

    Raises:
        InnerVisionError: the same score stands in the table more than once.
    """
    if images is not None:
        scores = scores[scores["image"].isin(images)]
    scores = scores.assign(
        group=scores["group"].astype(object) if "group" in scores else None,
        weight=scores.get("weight", 1.0),
    )
    if twice := int(scores.duplicated(["image", "layer", "group", *SERIES]).sum()):
        raise InnerVisionError(f"{twice} scores stand in the table more than once. Evaluate the run again.")
    parts, draws = [], []
    for key, rows in scores.groupby(SERIES, observed=True):
        for part, values in _resample_series(rows, resamples):
            parts.append(part.assign(**dict(zip(SERIES, map(str, key), strict=True))))
            draws.append(values)
    rows = pd.concat(parts, ignore_index=True).astype({"layer": "Int64", "group": object})
    return Resampled(rows, np.concatenate(draws, axis=1))


def interval_of(draws: NDArray[np.float64], confidence: float = 0.95) -> NDArray[np.float64]:
    """Give the ends (2, rows) of the percentile interval of draws (resamples, rows).

    Draws of a group that the resample does not have (NaN) are left out.
    """
    tail = (1 - confidence) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a row of NaN alone
        return np.nanquantile(draws, [tail, 1 - tail], axis=0)


def _resample_series(scores: pd.DataFrame, resamples: int) -> list[tuple[pd.DataFrame, NDArray[np.float64]]]:
    """Give rows and draws of the layers of one series, each of them by group, and of their average."""
    # by name, so that the resamples do not depend on the order of the rows
    image, names = pd.factorize(scores["image"].astype(str), sort=True)
    layer, layers = pd.factorize(scores["layer"], sort=True, use_na_sentinel=False)
    group, groups = pd.factorize(scores["group"], use_na_sentinel=False)
    shape = len(names), len(layers), len(groups)
    place = image, layer, group
    value, weight, there = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=np.float32)
    absent = (scores["value"].isna() & scores["group"].notna()).to_numpy()
    weight[place] = scores["weight"]
    value[place] = np.where(absent, 0, scores["value"] * scores["weight"])
    there[place] = ~absent
    has = np.zeros(shape[:2], dtype=bool)  # which images have which layers
    has[image, layer] = True

    def draw(chosen: NDArray[np.intp], images: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Score some layers over some images: (1 + resamples, layers, 1 + groups), the first for all groups."""
        sums = [part[images][:, chosen].reshape(images.sum(), -1) for part in (value, weight, there)]
        blocks = [np.full((1, images.sum()), 1 / images.sum()), *resample_weights(int(images.sum()), resamples)]
        with np.errstate(invalid="ignore"):  # values that are not finite stay so
            scored = np.concatenate([_divide(*(block @ part for part in sums)) for block in blocks])
        scored = scored.reshape(-1, len(chosen), len(groups))
        if None in groups_of:
            return scored[..., order]
        count = np.isfinite(scored).sum(axis=-1, keepdims=True)
        return np.concatenate(
            [_divide(np.nansum(scored, axis=-1, keepdims=True), count, count), scored[..., order]], -1
        )

    groups_of = [None if pd.isna(name) else str(name) for name in groups]
    order = sorted(range(len(groups)), key=lambda i: (groups_of[i] is not None, groups_of[i] or ""))
    labels = ([] if None in groups_of else [None]) + [groups_of[i] for i in order]

    def describe(number: int | None, images: NDArray[np.bool_]) -> pd.DataFrame:
        shown = pd.NA if number is None else layers[number]
        return pd.DataFrame({"layer": [shown] * len(labels), "group": labels, "images": int(images.sum())})

    drawn: dict[int, NDArray[np.float64]] = {}
    for images in np.unique(has.T, axis=0):  # mostly all layers have the same
        chosen = np.flatnonzero((images == has.T).all(axis=1))
        drawn |= dict(zip(chosen.tolist(), draw(chosen, images).swapaxes(0, 1), strict=True))
    result = [(describe(number, has[:, number]), drawn[number]) for number in sorted(drawn)]
    decoder = np.array([number for number, name in enumerate(layers) if not pd.isna(name) and name >= 1], dtype=int)
    common = np.asarray(has[:, decoder].all(axis=1))
    if len(decoder) and common.any():
        same = (has[:, decoder] == common[:, None]).all()
        of_layers = np.stack([drawn[n] for n in decoder.tolist()], 1) if same else draw(decoder, common)
        result.append((describe(None, common), of_layers.mean(axis=1)))
    return result


def _divide(
    value: NDArray[np.floating], weight: NDArray[np.floating], there: NDArray[np.floating]
) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there > 0, value / weight, np.nan)
