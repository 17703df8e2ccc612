"""Scores of the study of distilling by layer, and what one model has above another."""

from collections.abc import Collection, Iterable

import pandas as pd
from tools.world.distill import LOSSES

from benchmarks.distilling.runs import Studied, Study
from benchmarks.science import mean_in_every_layer
from innervision.metrics.registry import find_metric
from innervision.report.compare import compare
from innervision.report.files import evaluations_of, read_scores
from innervision.report.jackknife import difference, jackknife
from innervision.report.tables import read_summary

SIMILARITY = "centred_cosine"
METRICS = {
    SIMILARITY: "centred cosine",
    "accuracy": "pairs ordered right",
    "miou": "mIoU",
}
"""Of similarity, and of the tasks depth and seg."""
KEYS = ["comparison", "probe", "target", "metric", "layer"]


def read_all(study: Study, models: Iterable[Studied], metrics: Collection[str]) -> pd.DataFrame:
    """Give the scores of models by layer, with those of floors and of the expert."""
    parts = []
    for studied in models:
        run = study.run(studied)
        for evaluation in evaluations_of(run):
            parts.append(_chosen(read_summary(run, evaluation), metrics).assign(**studied._asdict()))
    return pd.concat(parts, ignore_index=True)


def compare_all(
    study: Study, pairs: Iterable[tuple[Studied, Studied | None]], metrics: Collection[str]
) -> pd.DataFrame:
    """Give the paired difference of each pair by layer: the first less the second, or less the mean feature.

    `seed` is that of the first, or of the second where that alone has one that varies.
    """
    parts = []
    for first, second in pairs:
        if second is None:
            found, other = _above_mean(study, first), "mean feature"
        else:
            found = compare(study.run(first), study.run(second)).differences
            other = second.model if second.probe == first.probe else f"{second.model}, {second.probe}"
        seed = first.seed if second is None else max(first.seed, second.seed)
        parts.append(
            _chosen(found, metrics).assign(comparison=f"{first.model} - {other}", probe=first.probe, seed=seed)
        )
    return pd.concat(parts, ignore_index=True)


def _above_mean(study: Study, studied: Studied) -> pd.DataFrame:
    """Compare a run's probes with the mean feature in the place of every layer's prediction."""
    parts = []
    for evaluation in evaluations_of(study.run(studied)):
        table = read_scores(study.run(studied), evaluation)
        table = table[table["metric"].isin(METRICS) & (table["protocol"] == "standard")]
        own, mean = (
            {(series.rows["target"].iloc[0], series.rows["metric"].iloc[0]): series for series in jackknife(each)}
            for each in (table[table["source"] == "probe"], mean_in_every_layer(table))
        )
        parts += [difference(one, mean[key], share=find_metric(key[1]).share) for key, one in own.items()]
    return pd.concat(parts, ignore_index=True)


def _chosen(rows: pd.DataFrame, metrics: Collection[str]) -> pd.DataFrame:
    return rows[rows["metric"].isin(metrics) & (rows["protocol"] == "standard") & rows["group"].isna()]


def over_seeds(compared: pd.DataFrame) -> pd.DataFrame:
    """Give a row per comparison, kind of probe, target, metric and layer: the difference, over the seeds.

    `low` and `high` are the outermost ends of the 95% intervals; `above` and `below` count the seeds whose interval
    lies wholly on that side of 0; `loss` marks the layer where the target's loss stood.
    """
    rows = compared[compared["layer"].notna()]
    rows = rows.assign(difference=rows["mean"], above=rows["low"] > 0, below=rows["high"] < 0, seeds=1)
    ways = {"difference": "mean", "low": "min", "high": "max", "above": "sum", "below": "sum", "seeds": "sum"}
    found = rows.groupby(KEYS, sort=False).agg(ways).reset_index()
    at = found["target"].map({name: loss.layer for name, loss in LOSSES.items()})
    return found.assign(loss=["loss" if here else "" for here in at == found["layer"]])
