"""Scores of many images from scores of each, and how much every score changes when an image is left out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from innervision.errors import InnerVisionError
from innervision.metrics.interval import (
    FEWEST,
    jackknife_error,
    jackknife_skewness,
    mean_interval,
    share_difference_interval,
    share_interval,
)

SERIES = ["target", "source", "metric", "protocol"]
"""What tells a series of layers from others."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """The scores of one target by one source, metric and protocol, for R layers and groups."""

    rows: pd.DataFrame
    """What each score is: the columns of `SERIES`, `layer` and `group`; and of the images that it is over:

    | column | |
    |---|---|
    | images | how many have it |
    | effective | how many of equal weight would tell as much: (Σ weight)² / Σ weight² |
    | things | the sum of the weights; of the average over layers, of all of them |
    | equal | whether all weigh the same |
    | bias | of a mean over groups: how far it is expected to lie above its value over many images |
    | groups | of a mean over groups: how many |
    | rare_groups | of a mean over groups: how many of them fewer than 5 images have |
    """
    score: Array  # (R,)
    changes: Array  # (images, R)
    """How much each score changes when an image is left out."""
    images: list[str]

    def interval(self, *, share: bool) -> tuple[Array, Array]:
        """Give both ends (R,) of the 95% intervals, NaN where fewer than 5 images have the score.

        Args:
            share: whether the values are shares of things, as many as an image's weight says. A mean over groups is
                none.
        """
        return _interval(self.rows, self.score, self.changes, share=share)


def jackknife(scores: pd.DataFrame) -> Iterator[Series]:
    """Score every layer of a table, and the average of the decoder layers (1 and up) as rows without a layer.

    A score is the mean of its images' values, weighted where the table has weights. Groups (classes, types of scene)
    are scored apart, and rows without a group are the score of the layer. Where all rows have one, the layer's score is
    the mean over the groups: mIoU is the mean over the classes. A value of NaN in a group says that the image does not
    have the group, though its weight counts (false positives); a group that no image has is left out.

    There is no average over layers that were scored on other images.

    Args:
        scores: with the columns of `SERIES`, image, layer and value, and in some tables weight and group.

    Raises:
        InnerVisionError: the same score stands in the table more than once.
    """
    for key, rows in scores.groupby(SERIES, observed=True):
        yield _series(dict(zip(SERIES, map(str, key), strict=True)), rows)


def difference(first: Series, second: Series, *, share: bool) -> pd.DataFrame:
    """Compare two series over the same images, first less second, in the layers and groups that both have.

    Returns:
        The columns of `SERIES`, layer, group, images, groups and rare_groups as in `Series.rows`; mean, low and high
        are of the paired difference.
    """
    keys = [*SERIES, "layer", "group"]
    numbered = [series.rows.assign(number=range(len(series.rows))) for series in (first, second)]
    both = numbered[0].merge(numbered[1], on=keys, suffixes=("", "_second"))
    one, other = both["number"].to_numpy(), both["number_second"].to_numpy()
    score = first.score[one] - second.score[other]
    changes = first.changes[:, one] - second.changes[:, other]
    pair = [both[name].to_numpy() for name in ("bias", "bias_second")]
    rows = both[[*keys, "equal", "groups", "rare_groups"]].assign(
        **{name: both[[name, f"{name}_second"]].min(axis=1) for name in ("images", "effective", "things")},
        equal=both["equal"] & both["equal_second"],
        bias=pair[0] - pair[1],
    )
    low, high = _interval(rows, score, changes, share=share, paired=True)
    return rows[[*keys, "images", "groups", "rare_groups"]].assign(mean=score, low=low, high=high)


def _interval(
    rows: pd.DataFrame, score: Array, changes: Array, *, share: bool, paired: bool = False
) -> tuple[Array, Array]:
    """Give both ends (R,) of the intervals of scores, or of differences of scores of the same images.

    The skewness is transformed away of plain means alone: that of a ratio is not that of its changes. The bias of a
    mean over groups is taken off. That of a single group may be wrong by as much as it is large; over G groups such
    errors cancel to 1 / √G of it.
    """
    columns = ("images", "effective", "things", "equal", "bias", "groups")
    images, effective, things, equal, bias, groups = (rows[name].to_numpy() for name in columns)
    enough = images >= FEWEST
    images, effective = np.where(enough, images, FEWEST), np.where(enough, effective, FEWEST)
    error = jackknife_error(changes, images)
    if share and not groups.any():
        if paired:
            ends = share_difference_interval(score, changes, effective, np.maximum(things, effective))
        else:
            ends = share_interval(score, error, effective, things)
    else:
        skewness = np.where(equal, jackknife_skewness(changes, images), 0)
        error = np.sqrt(error**2 + bias**2 / np.maximum(groups, 1))
        ends = mean_interval(score - bias, error, np.maximum(effective - 1, 1), skewness)
    return np.where(enough, ends[0], np.nan), np.where(enough, ends[1], np.nan)


class _Layer(NamedTuple):
    """The scores of one layer: first of all groups together, then of each group."""

    facts: dict[str, NDArray]  # (R,) each; see `Series.rows`
    score: Array  # (R,)
    changes: Array  # (images, R)
    has: NDArray[np.bool_]  # (images,) which have a row at all


def _series(key: dict[str, str], rows: pd.DataFrame) -> Series:
    image, names = _number(rows["image"])  # by name: two runs have the same order
    layer, layers = pd.factorize(rows["layer"], sort=True, use_na_sentinel=False)
    group, groups = _number(rows["group"]) if "group" in rows else (np.zeros(len(rows), int), [None])
    value = rows["value"].to_numpy(float)
    weight = rows["weight"].to_numpy(float) if "weight" in rows else np.ones(len(rows))
    shape = len(names), len(groups)
    labels = groups if groups[0] is None else [None, *groups]
    grouped = np.tile([name is not None for name in groups], shape[0])
    cell = image * shape[1] + group

    parts: list[_Layer] = []
    for number in range(len(layers)):
        here = layer == number
        counts = np.bincount(cell[here], minlength=shape[0] * shape[1])
        if twice := int(counts[counts > 1].sum() - (counts > 1).sum()):
            raise InnerVisionError(f"{twice} scores stand in the table more than once. Evaluate the run again.")
        values, weights = np.full(counts.shape, np.nan), np.zeros(counts.shape)
        values[cell[here]], weights[cell[here]] = value[here], weight[here]
        absent = np.isnan(values) & (grouped | (counts == 0))
        has = np.asarray((counts > 0).reshape(shape).any(axis=1))
        grid = (values.reshape(shape), weights.reshape(shape), ~absent.reshape(shape))
        parts.append(_score_layer(*grid, has, mean_over_groups=groups[0] is not None))

    shown = [None if pd.isna(name) else int(name) for name in layers]
    decoder = [part for part, name in zip(parts, shown, strict=True) if name is not None and name >= 1]
    if decoder and all(np.array_equal(part.has, decoder[0].has) for part in decoder):
        parts.append(_average(decoder))
        shown.append(None)
    facts = {name: np.concatenate([part.facts[name] for part in parts]) for name in parts[0].facts}
    table = pd.DataFrame(
        {"layer": np.repeat(np.array(shown, dtype=object), len(labels)), "group": labels * len(parts)} | facts
    )
    table = table.astype({"layer": "Int64", "group": object}).assign(**key)
    score = np.concatenate([part.score for part in parts])
    there = (table["group"].isna() | ~np.isnan(score)).to_numpy()
    changes = np.concatenate([part.changes for part in parts], axis=1)
    return Series(table[there].reset_index(drop=True), score[there], changes[:, there], [str(name) for name in names])


def _number(column: pd.Series) -> tuple[NDArray[np.intp], list[str | None]]:
    """Number the distinct strings of a column by the alphabet, after the null if there is one."""
    codes, found = pd.factorize(column, use_na_sentinel=False)
    names = [None if pd.isna(name) else str(name) for name in found]
    order = sorted(range(len(names)), key=lambda i: (names[i] is not None, names[i] or ""))
    return np.argsort(order)[codes], [names[i] for i in order]


def _score_layer(
    values: Array, weights: Array, there: NDArray[np.bool_], has: NDArray[np.bool_], *, mean_over_groups: bool
) -> _Layer:
    """Score the groups of a layer and, if asked, the mean over them.

    Args:
        values: (images, groups).
        weights: the same; 0 where the table has no row.
        there: the same: whether the image has the group.
        has: (images,): whether the image has a row at all.
        mean_over_groups: put the mean over the groups first.
    """
    total = np.where(there, values * weights, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        sums = weights.sum(axis=0)
        score = np.where(there.any(axis=0), total.sum(axis=0) / sums, np.nan)
        changes = (score * weights - total) / (sums - weights)
    changes[(weights == 0) | (weights == sums)] = 0  # the second: of a group that one image alone has
    own = np.where(there, weights, 0)
    largest = own.max(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        effective = np.square(own.sum(axis=0)) / np.square(own).sum(axis=0)
    facts: dict[str, NDArray] = {
        "images": (own > 0).sum(axis=0),
        "effective": np.nan_to_num(effective),
        "things": own.sum(axis=0),
        "equal": ((own == 0) | (own == largest)).all(axis=0) & (weights == own).all(axis=0),
        "bias": np.zeros(len(score)),
        "groups": np.zeros(len(score), dtype=int),
        "rare_groups": np.zeros(len(score), dtype=int),
    }
    if not mean_over_groups:
        return _Layer(facts, score, changes, has)
    count = there.sum(axis=0)
    mean, change, bias = _mean_over_groups(score, changes, there)
    whole = {
        "images": has.sum(),
        "effective": float(has.sum()),
        "things": 0.0,
        "equal": False,
        "bias": bias,
        "groups": (count > 0).sum(),
        "rare_groups": ((count > 0) & (count < FEWEST)).sum(),
    }
    facts = {name: np.concatenate([[whole[name]], values]) for name, values in facts.items()}
    return _Layer(facts, np.concatenate([[mean], score]), np.column_stack([change, changes]), has)


def _mean_over_groups(score: Array, changes: Array, there: NDArray[np.bool_]) -> tuple[float, Array, float]:
    """Give the mean over the groups that are there, its changes (images,), and its bias.

    A group may go with its only image. The bias is the jackknife's (Quenouille 1956) of each group's ratio; of a group
    that fewer than 5 images have it is not known, and taken for 0.
    """
    count = there.sum(axis=0)
    known = np.flatnonzero(count > 0)
    if not len(known):
        return np.nan, np.full(len(there), np.nan), 0.0
    gone = there[:, known] & (count[known] == 1)  # with which image which group goes
    left = np.where(gone, 0, score[known] + changes[:, known]).sum(axis=1)
    biases = np.where(count >= FEWEST, (count - 1) / np.maximum(count, 1) * changes.sum(axis=0), 0)
    mean = score[known].mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(mean), left / (len(known) - gone.sum(axis=1)) - mean, float(biases[known].mean())


def _average(layers: list[_Layer]) -> _Layer:
    """Average over layers: the mean of the scores, so its changes are the mean of theirs."""
    facts = dict(layers[0].facts)
    facts["things"] = np.sum([layer.facts["things"] for layer in layers], axis=0)
    facts["bias"] = np.mean([layer.facts["bias"] for layer in layers], axis=0)
    changes = layers[0].changes.copy()
    for layer in layers[1:]:
        changes += layer.changes
    return _Layer(facts, np.mean([layer.score for layer in layers], axis=0), changes / len(layers), layers[0].has)
