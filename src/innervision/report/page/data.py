"""What the scripts of a page draw from: the numbers of a study as objects of JSON, without a copy of anything."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from innervision.errors import printable
from innervision.metrics.registry import Metric
from innervision.report.compare import Compared
from innervision.report.page.study import Study, of_metric
from innervision.report.panels import COLORS, FLOORS, LEVELS
from innervision.report.tables import MOST_GROUPS, SOURCES, holds

DARK = ("#4DA3E0", "#F0803C", "#2FBF93", "#E08FC0", "#F2B21B", "#8AD0F5", "#FFFFFF")
"""The colours of the runs on a dark ground: those of figures, lighter."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x")
"""One per run, so that lines are told apart without colours."""
SPLITS = {
    "accuracy_mean_right": ("accuracy", "pairs: mean map right"),
    "accuracy_mean_wrong": ("accuracy", "pairs: mean map wrong"),
}
"""Metrics that score a part of what another one scores: that one, and the name of the part."""


def page_data(study: Study) -> dict[str, Any]:
    """Give what the scripts of a page need, apart from the explorer's pictures.

    Names are without control characters; the scripts show them as text alone.
    """
    return {
        "runs": [
            {"label": run.label, "light": COLORS[n], "dark": DARK[n], "symbol": SYMBOLS[n]}
            for n, run in enumerate(study.runs)
        ],
        "sources": {name: SOURCES[name] for name in (*FLOORS, *LEVELS)},
        "targets": [
            {
                "name": printable(target),
                "headlines": [keys.index(key) for key in study.headlines(target)],
                "metrics": [_metric_data(study, target, key) for key in keys],
            }
            for target in study.targets
            for keys in [study.keys(target)]
        ],
        "pairs": [
            {"runs": [one, other], "why": found}
            for (one, other), found in study.pairs.items()
            if isinstance(found, str)
        ],
    }


def _metric_data(study: Study, target: str, key: str) -> dict[str, Any]:
    metric = study.metric(key)
    rows = [of_metric(run.scores, target, key) for run in study.runs]
    rules = sorted({rule for each in rows for rule in each["protocol"]} - {"standard"})
    return {
        "name": printable(metric.name),
        "axis": printable(metric.name) + "".join(f" ({printable(rule)} rule)" for rule in rules),
        "meaning": printable(metric.meaning),
        "higher": metric.higher_is_better,
        "runs": {n: _curves(each[each["group"].isna()], metric) for n, each in enumerate(rows) if len(each)},
        "differences": list(_differences(study, target, key)),
        "splits": _splits(study, target, key),
    }


def _curves(rows: pd.DataFrame, metric: Metric) -> dict[str, Any]:
    """Give the lines of one run in a panel: of its probes, of floors by layer, and levels without layers."""
    found: dict[str, Any] = {"lines": {}, "levels": {}}
    for source in ("probe", *FLOORS, *LEVELS):
        if source not in ("probe", "expert", "plain") and source not in metric.floors:
            continue
        mine = rows[rows["source"] == source]
        if source in LEVELS:
            found["levels"] |= {source: _values(mine, metric)} if len(mine) else {}
        elif len(mine):
            found["lines"][source] = _values(mine, metric)
    if "probe" in found["lines"]:
        cleared = rows[rows["source"] == "probe"].sort_values("layer")["clear"]
        found["lines"]["probe"]["clear"] = [None if pd.isna(clear) else bool(clear) for clear in cleared]
    return found


def _values(rows: pd.DataFrame, metric: Metric) -> dict[str, Any]:
    """Give scores as lists: layers (null: the average), means, both ends of intervals, images, and as text."""
    rows = rows.sort_values("layer")
    sure = holds(rows) if "rare_groups" in rows else pd.Series(True, index=rows.index)
    low, high = rows["low"].where(sure), rows["high"].where(sure)
    return {
        "layers": [None if pd.isna(layer) else int(layer) for layer in rows["layer"]],
        "mean": [_number(value) for value in rows["mean"]],
        "low": [_number(value) for value in low],
        "high": [_number(value) for value in high],
        "images": [int(count) for count in rows["images"]],
        "text": [
            f"{metric.format(mean)}" + ("" if np.isnan(a) else f" [{metric.format(a)}, {metric.format(b)}]")
            for mean, a, b in zip(rows["mean"], low, high, strict=True)
        ],
    }


def _number(value: float) -> float | None:
    """Round to five digits; JSON has no NaN."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _differences(study: Study, target: str, key: str) -> Iterator[dict[str, Any]]:
    """Give the paired differences of every two runs, either way round: the first less the second."""
    metric = study.metric(key)
    for (one, other), found in study.pairs.items():
        if not isinstance(found, Compared):
            continue
        rules = set(of_metric(study.runs[one].scores, target, key)["protocol"])
        rows = of_metric(found.differences, target, key)
        rows = rows[rows["group"].isna() & rows["protocol"].isin(rules)]
        if len(rows):
            turned = rows.assign(mean=-rows["mean"], low=-rows["high"], high=-rows["low"])
            yield {"runs": [one, other], **_values(rows, metric)}
            yield {"runs": [other, one], **_values(turned, metric)}


def _splits(study: Study, target: str, key: str) -> dict[str, Any] | None:
    """Give the parts of a score by layer: classes, types of scene, or what the mean map gets right and wrong."""
    metric = study.metric(key)
    parts: dict[str, dict[int, pd.DataFrame]] = {}
    for number, run in enumerate(study.runs):
        mine = run.scores[(run.scores["target"] == target) & (run.scores["source"] == "probe")]
        for name, rows in mine[(mine["metric"] == key) & mine["group"].notna()].groupby("group"):
            parts.setdefault(printable(str(name)), {})[number] = rows
        for part, (whole, name) in SPLITS.items():
            rows = mine[(mine["metric"] == part) & mine["group"].isna()]
            if whole == key and len(rows):
                parts.setdefault(name, {})[number] = rows
    if len(parts) < 2:
        return None
    last = max(int(rows["layer"].max()) for part in parts.values() for rows in part.values())
    some = len(parts) > MOST_GROUPS  # the rest stands in the Parquet file
    if some:
        parts = dict(sorted(parts.items(), key=lambda part: -_average(part[1])))
    return {
        "names": [*parts],
        "runs": [
            {
                number: _values(rows[_is_shown(rows["layer"], last)] if some else rows, metric)
                for number, rows in part.items()
            }
            for part in parts.values()
        ],
    }


def _average(part: dict[int, pd.DataFrame]) -> float:
    """Give what the first run that has a part scores on average over its layers."""
    return float(next(iter(part.values()))["mean"].mean())


def _is_shown(layers: pd.Series, last: int) -> pd.Series:
    """Tell which layers are shown of a score of many classes: the average, what enters the decoder, and its end."""
    return layers.isna() | layers.isin([-1, 0, last])


def all_scores(study: Study) -> str:
    """Give the scores of all runs as a Parquet file in base64; of floors and ceilings those of whole sets alone.

    Numbers are float32.
    """
    parts = [run.scores.assign(run=run.label) for run in study.runs]
    rows = pd.concat(parts, ignore_index=True)
    rows = rows[rows["group"].isna() | (rows["source"] == "probe")]
    columns = ["run", "target", "evaluation", "source", "layer", "metric", "protocol", "group", "mean", "low", "high"]
    rows = rows[[*columns, "images", "groups", "rare_groups"]]
    rows = rows.astype({"mean": "float32", "low": "float32", "high": "float32", "layer": "Int16"})
    buffer = io.BytesIO()
    rows.to_parquet(buffer, index=False, compression="zstd")
    return base64.b64encode(buffer.getvalue()).decode()
