"""How far each layer of a run lies above the floors: paired over the images, as two runs are compared."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pandas as pd

from innervision.metrics.registry import Metric, find_metric
from innervision.report.jackknife import SERIES, Series, difference, jackknife

COLUMNS = [*SERIES, "floor", "layer", "images", "mean", "low", "high", "clear"]


def above_floors(scores: pd.DataFrame, metrics: Mapping[str, Metric] | None = None) -> pd.DataFrame:
    """Give the paired difference, probe less floor, for every layer and every floor that says something of the metric.

    What makes an image easy or hard for both cancels. A layer clears a floor where the 95% interval of the difference
    leaves out 0 on the better side.

    Args:
        scores: as `read_scores` gives them.
        metrics: those that a task brought.

    Returns:
        The columns of `COLUMNS`: `floor` names its source; a null layer is the average over the decoder layers; `mean`,
        `low` and `high` are of the difference; `clear` tells whether the layer clears the floor, null where there is no
        interval. Floors over other images than the probe's are left out.
    """
    whole = scores if "group" not in scores else scores[_scores_layers(scores)]
    found: dict[tuple[str, ...], dict[str, Series]] = {}
    for series in jackknife(whole):
        target, source, metric, protocol = (str(each) for each in series.rows[SERIES].iloc[0])
        found.setdefault((target, metric, protocol), {})[source] = _without_groups(series)
    parts = [part for (_, key, _), sources in found.items() for part in _compare(find_metric(key, metrics), sources)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)


def clear_of_floors(scores: pd.DataFrame, metrics: Mapping[str, Metric] | None = None) -> pd.DataFrame:
    """Tell of every layer whether it clears all floors of a metric that were scored over its images.

    Args:
        scores: as `read_scores` gives them.
        metrics: those that a task brought.

    Returns:
        Columns: those of `SERIES`, where `source` is `probe`; `layer`; `clear`, null where a floor without interval may
        not be cleared. Metrics without a floor are left out.
    """
    above = above_floors(scores, metrics)
    above = above.assign(unknown=above["clear"].isna(), failed=~above["clear"].astype("boolean").fillna(True))
    by_layer = above.groupby([*SERIES, "layer"], dropna=False)[["unknown", "failed"]].any().reset_index()
    clear = (~by_layer["failed"]).astype("boolean").where(by_layer["failed"] | ~by_layer["unknown"])
    return by_layer.assign(clear=clear)[[*SERIES, "layer", "clear"]]


def _scores_layers(scores: pd.DataFrame) -> pd.Series:
    """Tell which rows the score of a layer is made of: those without a group, or all where all have one."""
    ungrouped = scores["group"].isna()
    return ungrouped | ~ungrouped.groupby([scores[name] for name in SERIES], observed=True).transform("any")


def _without_groups(series: Series) -> Series:
    """Leave out the scores of classes and types of scene, which would take most of the memory."""
    own = series.rows["group"].isna().to_numpy()
    rows = series.rows[own].reset_index(drop=True)
    return Series(rows, series.score[own], series.changes[:, own], series.images)


def _compare(metric: Metric, sources: Mapping[str, Series]) -> Iterator[pd.DataFrame]:
    probe = sources.get("probe")
    for floor in metric.floors:
        other = sources.get(floor)
        if probe is None or other is None or probe.images != other.images:
            continue
        if other.rows["layer"].isna().all():
            other = _at_every_layer(other, probe.rows["layer"])
        alike = replace(other, rows=other.rows.assign(source="probe"))
        found = difference(probe, alike, share=metric.share)
        clear = (found["low"] > 0) if metric.higher_is_better else (found["high"] < 0)
        known = found["low"].notna()
        yield found.assign(source="probe", floor=floor, clear=clear.astype("boolean").where(known))[COLUMNS]


def _at_every_layer(floor: Series, layers: pd.Series) -> Series:
    """Repeat the one score of a source without layers for all of these."""
    repeated = [0] * len(layers)
    rows = floor.rows.loc[repeated].reset_index(drop=True).assign(layer=layers.array)
    return Series(rows, floor.score[repeated], floor.changes[:, repeated], floor.images)
