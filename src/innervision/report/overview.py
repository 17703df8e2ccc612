"""What a table of scores says, in a line for each metric: the best layer, its floor and its ceiling."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from innervision.metrics.registry import METRICS, Metric, find_metric
from innervision.report.files import read_facts, run_protocol
from innervision.report.tables import (
    BESIDE,
    Metrics,
    align,
    in_order,
    layer_name,
    read_summary,
    title_of,
    warnings_of,
    with_interval,
)

CEILINGS = ("expert", "plain")
"""Sources that say what the expert itself reaches, the one to compare with first."""

LEGEND = """\
best            the layer with the best score, with the 95% interval over the images; avg: over the decoder layers
floor           the best score at that layer that needs no MLLM (mean, zero) or not this image (shuffled, blank)
ceiling         what the expert reaches: its own features in the place of a prediction (expert), or as it is (plain)
clear           layers that clear all floors: the 95% interval of the paired difference over the images leaves out 0"""


@dataclass(frozen=True)
class Overview:
    """The scores of one target by one metric and rule."""

    target: str
    protocol: str
    metric: Metric
    best: Any
    """The row of `summarize` of the best layer, as a named tuple: layer, mean, low, high, images …"""
    average: Any | None
    """The row of the average over the decoder layers; None where there is none."""
    floor: Any | None
    """The row of the best floor at the best layer; None where the metric has none."""
    ceiling: Any | None
    """The row of the expert's own features, else of the expert as it is; None where neither was scored."""
    layers: list[int]
    below: list[int]
    """Layers that do not clear all floors, see `report.floors`; all of them where there are no intervals."""


def overviews(summary: pd.DataFrame, targets: Iterable[str], metrics: Metrics | None = None) -> list[Overview]:
    """Give what each target, rule and metric of a summary says, in the order of the tables.

    Args:
        summary: as `summarize` gives it.
        targets: to take, in this order.
        metrics: those that a task brought.
    """
    found = []
    whole = summary[summary["group"].isna()]
    for target in targets:
        of_target = whole[whole["target"] == target]
        for protocol in in_order(of_target["protocol"], ["standard"]):
            rows = of_target[of_target["protocol"] == protocol]
            for key in in_order(rows["metric"], [*METRICS, *(metrics or {})]):
                metric = find_metric(key, metrics)
                if overview := _overview(rows[rows["metric"] == key], metric):
                    found.append(overview)
    return found


def format_overviews(
    summary: pd.DataFrame, targets: Iterable[str], metrics: Metrics | None = None, protocol: str | None = None
) -> str:
    """Write `overviews` as plain text of at most 120 columns, a few lines for each target; `LEGEND` explains them.

    Args:
        summary: as `summarize` gives it.
        targets: to show, in this order.
        metrics: those that a task brought.
        protocol: of the run, by which its predictions were made; None = not known.
    """
    made = f"run of the {protocol} protocol, " if protocol else ""
    by_table: dict[tuple[str, str], list[Overview]] = {}
    for each in overviews(summary, targets, metrics):
        by_table.setdefault((each.target, each.protocol), []).append(each)
    blocks = []
    for (target, rule), lines in by_table.items():
        rows = summary[(summary["target"] == target) & (summary["protocol"] == rule) & summary["group"].isna()]
        notes = [*_below(lines), *warnings_of(rows, metrics or {})]
        blocks.append("\n".join([title_of(rows, made), "", *_table(lines), *notes]))
    return "\n\n".join(blocks)


def overview_text(run: str | Path, table: str = "similarity") -> str:
    """Write what a table of a run's scores says. See `format_overviews`.

    Raises:
        InnerVisionError: the run or its scores cannot be read.
    """
    summary, facts = read_summary(run, table), read_facts(run, table)
    known = [*facts.plan.get("experts", {}), *summary["target"].unique()]
    targets = [name for name in dict.fromkeys(known) if name in set(summary["target"])]
    return format_overviews(summary, targets, facts.metrics, run_protocol(run, facts))


def _overview(rows: pd.DataFrame, metric: Metric) -> Overview | None:
    """Read the rows of one target, rule and metric; None where no layer has a finite score."""
    sign = 1 if metric.higher_is_better else -1
    every: list[Any] = list(rows.sort_values("layer").itertuples(index=False))
    probe = [row for row in every if row.source == "probe" and not pd.isna(row.layer)]
    finite = [row for row in probe if np.isfinite(row.mean)]
    if not finite:
        return None

    def floors(layer: int) -> list[Any]:
        """Give the floors of a layer; the average over layers of those that have layers is none."""
        of_metric = [row for row in every if row.source in metric.floors]
        return [row for row in of_metric if (row.source not in BESIDE if pd.isna(row.layer) else row.layer == layer)]

    best = max(finite, key=lambda row: sign * row.mean)
    ceilings = [row for source in CEILINGS for row in every if row.source == source]
    return Overview(
        best.target,
        best.protocol,
        metric,
        best,
        next((row for row in every if row.source == "probe" and pd.isna(row.layer)), None),
        max(floors(best.layer), key=lambda row: sign * row.mean, default=None),
        ceilings[0] if ceilings else None,
        [int(row.layer) for row in probe],
        [int(row.layer) for row in probe if floors(row.layer) and (row.clear is pd.NA or not row.clear)],
    )


def _table(lines: Sequence[Overview]) -> Iterator[str]:
    """Write a line for each metric, below the names of the columns."""
    names = [each.metric.name for each in lines]
    columns = [
        [name.ljust(max(map(len, names))) for name in ["", *names]],
        align(["best", *(layer_name(int(each.best.layer)) for each in lines)]),
        align(["probe [low, high]", *(with_interval(each.best, each.metric) for each in lines)]),
        align(["avg", *("" if each.average is None else each.metric.format(each.average.mean) for each in lines)]),
        align(["floor", *(with_source(each.floor, each.metric) for each in lines)]),
        align(["ceiling", *(with_source(each.ceiling, each.metric) for each in lines)]),
        align(["clear", *(f"{len(each.layers) - len(each.below)} of {len(each.layers)}" for each in lines)]),
    ]
    shown = [column for column in columns if any(cell.strip() for cell in column[1:])]
    yield from ("  ".join(cells).rstrip() for cells in zip(*shown, strict=True))


def with_source(row: Any | None, metric: Metric) -> str:
    """Write the score of a floor or a ceiling after its source; nothing where there is none."""
    return "" if row is None else f"{row.source} {metric.format(row.mean)}"


def _below(lines: Sequence[Overview]) -> Iterator[str]:
    """Name the layers that do not stand out from their floors, of the metrics that count most."""
    for each in lines:
        if each.metric.main and each.below and each.floor is not None:
            where = "no layer clears" if each.below == each.layers else f"{spans(each.below)} do not clear"
            yield f"{each.metric.name}: {where} all floors"


def spans(layers: Sequence[int]) -> str:
    """Write ascending layer numbers in short, such as `vision, 3 to 8, 12`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1 and layer > 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(layer_name(run[0]) + (f" to {run[-1]}" if len(run) > 1 else "") for run in runs)
