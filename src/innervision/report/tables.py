"""Scores of a run, averaged over images and written as a table for the terminal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from innervision.errors import InnerVisionError, first_line, printable
from innervision.files import atomic_write
from innervision.metrics.interval import FEWEST
from innervision.metrics.registry import METRICS, Metric, find_metric
from innervision.report.files import read_facts, read_scores, run_protocol
from innervision.report.floors import clear_of_floors
from innervision.report.jackknife import jackknife

SOURCES = {
    "probe": "the probe's prediction for the image",
    "shuffled": "the same probe's prediction for another image",
    "blank": "the prediction where the MLLM is shown a plain grey image",
    "zero": "a feature of zeros, which needs no MLLM",
    "mean": "the mean feature of the training images, which needs no MLLM",
    "expert": "the expert's own features, in the place of a prediction",
    "plain": "the expert as it is",
}
"""Where the scored features come from."""

BESIDE = ("shuffled", "blank")
"""Floors that every layer has, shown beside the probe's score."""

KEYS = ["target", "source", "layer", "metric", "protocol"]
TEXTS = ["target", "source", "metric", "protocol"]
SUMMARY = [*KEYS, "group", "mean", "low", "high", "images", "groups", "rare_groups", "clear"]
"""Columns of `summarize`."""
MOST_GROUPS = 12
"""Where a metric has more groups, as mIoU has classes, they are left to the file of all scores."""
MOST_RARE = 0.1
"""Where more of the groups than this share are in fewer than 5 images, the interval of their mean does not hold."""
WIDTH = 120
"""Most characters in a line of a table; metrics that do not fit go into another table below."""

Line = tuple[str, str, int | None]
"""A line of a table: what it is called, and the source and layer that it shows."""

Metrics = Mapping[str, Metric]
"""Metrics that tasks brought, by key."""


class Tabulated(NamedTuple):
    """The scores of a run by one evaluation."""

    summary: pd.DataFrame
    """As `summarize` gives it."""
    text: str
    """As `format_table` gives it, of all targets."""


def tabulate(run: str | Path, evaluation: str = "similarity") -> Tabulated:
    """Read the scores of a run, average them over images, and write them as plain text.

    Raises:
        InnerVisionError: the run, its scores or what is written beside them is missing or cannot be read.
    """
    scores = read_scores(run, evaluation)
    facts = read_facts(run, evaluation)
    summary = read_summary(run, evaluation)
    protocol = run_protocol(run, facts)
    return Tabulated(summary, format_table(summary, scores["target"].unique(), facts.metrics, protocol))


def summarize(scores: pd.DataFrame, metrics: Metrics | None = None) -> pd.DataFrame:
    """Score a table over its images: one row per target, source, layer, metric, protocol and group.

    A null group is the score of the layer; a null layer, for sources that have layers, is the average over the decoder
    layers (1 and up). See `innervision.report.jackknife`.

    Args:
        scores: as `read_scores` gives them.
        metrics: those that a task brought.

    Returns:
        Columns: those six; `mean`, `low` and `high` (95% interval over images, see `innervision.metrics.interval`);
        `images`, how many have the score; where the score is a mean over groups, `groups`, how many those are, and
        `rare_groups`, how many of them fewer than 5 images have (else 0). The interval is NaN where fewer than 5 images
        have the score, or a value is not finite. `clear` tells of a layer of the probe whether it clears all floors
        (see `innervision.report.floors`); it is null for what has none, and for groups.

    Raises:
        InnerVisionError: the same score stands in the table more than once.
    """
    parts = []
    for series in jackknife(scores):
        low, high = series.interval(share=find_metric(series.rows["metric"].iloc[0], metrics).share)
        parts.append(series.rows.assign(mean=series.score, low=low, high=high))
    summary = pd.concat(parts, ignore_index=True)
    clear = clear_of_floors(scores, metrics).assign(group=None)
    summary = summary.merge(clear, how="left", on=[*KEYS, "group"]).astype({"clear": "boolean"})
    summary = summary.sort_values("group", na_position="first").sort_values(KEYS, kind="stable", ignore_index=True)
    return summary[SUMMARY]


def read_summary(run: str | Path, evaluation: str = "similarity") -> pd.DataFrame:
    """Give the scores of a run over its images: as `write_summary` wrote them, where that is there and no older.

    Otherwise they are written now, unless the run may only be read, its files are links, as in the Hub's cache, or a
    name holds what a terminal would obey: it is escaped in the file, so that it would not be read as it is.

    Raises:
        InnerVisionError: as `read_scores`, or the file cannot be read.
    """
    table = Path(run) / "scores" / f"{evaluation}.parquet"
    path = table.with_suffix(".csv")
    if not (table.exists() and path.exists() and path.stat().st_mtime >= table.stat().st_mtime):
        summary = summarize(read_scores(run, evaluation), read_facts(run, evaluation).metrics)
        names = {str(name) for column in [*TEXTS, "group"] for name in summary[column].dropna().unique()}
        if not table.is_symlink() and all(printable(name) == name for name in names):
            with suppress(InnerVisionError):
                write_summary(summary, path)
        return summary
    try:
        read = pd.read_csv(path, keep_default_na=False, na_values=[""])  # a class may be called NA
        return read[SUMMARY].astype({"layer": "Int64", "clear": "boolean"} | dict.fromkeys([*TEXTS, "group"], object))
    except (OSError, ValueError, KeyError) as error:
        raise InnerVisionError(f"{path} cannot be read ({first_line(error)}). Delete it: it is made anew.") from error


def write_summary(summary: pd.DataFrame, path: str | Path) -> None:
    """Write rows of `summarize` as CSV: every score with its interval, by group as well.

    Raises:
        InnerVisionError: the file cannot be written.
    """
    texts = {name: summary[name].astype(object).map(printable, na_action="ignore") for name in [*TEXTS, "group"]}
    shown = summary.assign(**texts)
    with atomic_write(Path(path)) as temporary:
        shown.to_csv(temporary, index=False)


def holds(rows: pd.DataFrame) -> pd.Series:
    """Tell of rows of `summarize` whether images have enough of the groups for the interval of their mean."""
    return rows["rare_groups"] <= MOST_RARE * rows["groups"]


def format_table(
    summary: pd.DataFrame, targets: Iterable[str], metrics: Metrics | None = None, protocol: str | None = None
) -> str:
    """Write rows of `summarize` as plain text: for each target a line per layer, the average, then the floors.

    What the words mean stands once, below. Lines are at most 120 characters long: metrics that do not fit follow
    below.

    Args:
        summary: as `summarize` gives it.
        targets: to show, in this order.
        metrics: those that a task brought.
        protocol: of the run, by which its predictions were made; None = not known.
    """
    chosen = [summary[summary["target"] == target] for target in targets]
    made = f"run of the {protocol} protocol, " if protocol else ""
    tables = _format_tables(chosen, "probe", metrics or {}, made)
    return "\n\n".join([tables, _explain(pd.concat(chosen), metrics or {})])


def format_differences(differences: pd.DataFrame, targets: Iterable[str], metrics: Metrics | None = None) -> str:
    """Write rows of `compare` as plain text, as `format_table` does."""
    chosen = [differences[differences["target"] == target] for target in targets]
    notes = {
        "difference": "the score of the first run less that of the second; above 0 the first has the larger score",
        "[low, high]": "95% interval of the paired difference over the images: without 0, the runs differ; "
        f"- under {FEWEST} images",
        "avg": "difference of the averages over decoder layers: over those of both runs, or over each run's own "
        "where their models are not equally deep",
    }
    return "\n\n".join([_format_tables(chosen, "difference", metrics or {}), _write_notes(notes)])


def _format_tables(chosen: Sequence[pd.DataFrame], cell: str, metrics: Metrics, made: str = "") -> str:
    """Write the tables of several targets: `cell` says what a score is, `made` how predictions were made."""
    return "\n\n".join(
        _format_rule(table[table["protocol"] == protocol], cell, metrics, made)
        for table in chosen
        for protocol in in_order(table["protocol"], ["standard"])
    )


def _format_rule(table: pd.DataFrame, cell: str, metrics: Metrics, made: str) -> str:
    """Write the scores of one target by the rule of one protocol."""
    rows = table[table["group"].isna()]
    shown = in_order(rows["metric"], [*METRICS, *metrics])
    sources = in_order(rows["source"], SOURCES)
    layers = _layers(rows)
    lines: list[Line] = [(layer_name(layer), "probe", layer) for layer in layers]
    lines += [("avg", "probe", None)] if rows["layer"].isna().any() and layers[-1:] > [0] else []
    lines += [(source, source, None) for source in sources if source not in ("probe", *BESIDE)]
    blocks = [_metric_block(find_metric(key, metrics), rows[rows["metric"] == key], lines, cell) for key in shown]
    return "\n".join(
        [
            title_of(rows, made),
            "",
            _side_by_side(["", "layer", *(label for label, _, _ in lines)], blocks),
            *warnings_of(rows, metrics),
            *_format_groups(table[table["group"].notna()], lines, metrics),
        ]
    )


def title_of(rows: pd.DataFrame, made: str) -> str:
    """Say what the rows of one target and rule are over; `made` says how predictions were made."""
    images = count_images(rows["images"])
    title = f"{rows['target'].iloc[0]}: {images} {'image' if images == '1' else 'images'}, "
    return f"{title}{made}scored by the {rows['protocol'].iloc[0]} rule"


def warnings_of(rows: pd.DataFrame, metrics: Metrics) -> Iterator[str]:
    """Say which intervals of one target and rule do not hold."""
    for key in in_order(rows[~holds(rows)]["metric"], [*METRICS, *metrics]):
        worst = rows[rows["metric"] == key].sort_values("rare_groups").iloc[-1]
        yield (
            f"\nwarning: {worst.rare_groups} of the {worst.groups} classes are in fewer than {FEWEST} images. "
            f"The intervals of {find_metric(key, metrics).name} do not hold."
        )


def _format_groups(rows: pd.DataFrame, lines: list[Line], metrics: Metrics) -> Iterator[str]:
    """Write the scores of each group beside each other, metric by metric."""
    for key in in_order(rows["metric"], [*METRICS, *metrics]):
        groups = rows[rows["metric"] == key].groupby("group")
        if not 1 < groups.ngroups <= MOST_GROUPS:
            continue
        metric, blocks = find_metric(key, metrics), []
        for name, scores in groups:
            cells = _cells(scores)
            numbers = (_number(cells.get((source, layer)), metric) for _, source, layer in lines)
            blocks.append(align([str(name), count_images(scores["images"]), *numbers]))
        yield f"\n{metric.name} by group\n"
        yield _side_by_side(["layer", "images", *(label for label, _, _ in lines)], blocks)


def count_images(images: pd.Series) -> str:
    """Write how many images some scores are over."""
    least, most = images.min(), images.max()
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _explain(rows: pd.DataFrame, metrics: Metrics) -> str:
    """Say what the words of the tables mean."""
    notes = {source: SOURCES.get(source, "") for source in in_order(rows["source"], SOURCES)}
    notes["[low, high]"] = f"95% interval of the score over the images; - under {FEWEST} images"
    layers = _layers(rows)
    decoder = [layer for layer in layers if layer >= 1]
    if layers and layers[0] < 1:
        notes["vision, 0"] = "the output of the vision tower, and the embeddings that enter the decoder"
    if decoder:
        span = f"s, {decoder[0]} to {decoder[-1]}" if len(decoder) > 1 else f", {decoder[0]}"
        notes["avg"] = f"average over the decoder layer{span}"
    for key in in_order(rows["metric"], [*METRICS, *metrics]):
        metric = find_metric(key.partition(":")[0], metrics)
        if metric.meaning:
            notes[metric.name] = metric.meaning + ("" if metric.higher_is_better else "; lower is better")
    return _write_notes(notes)


def _write_notes(notes: Mapping[str, str]) -> str:
    return "\n".join(f"{name:<18}  {meaning}" for name, meaning in notes.items())


def layer_name(layer: int) -> str:
    """Write the number of a layer as tables do."""
    return "vision" if layer == -1 else str(layer)


def _layers(rows: pd.DataFrame) -> list[int]:
    return sorted(int(layer) for layer in rows["layer"].dropna().unique())


def _metric_block(metric: Metric, rows: pd.DataFrame, lines: list[Line], name: str) -> list[str]:
    """Give two header lines and the cells of `lines`, right-aligned to one width."""
    cells = _cells(rows)
    scores = [with_interval(cells.get((source, layer)), metric) for _, source, layer in lines]
    floors = [floor for floor in BESIDE if floor in set(rows["source"])]
    columns = [scores]
    for floor in floors:
        beside = [cells.get((floor, layer)) if source == "probe" else None for _, source, layer in lines]
        columns.append(align([_number(row, metric) for row in beside]))
    together = (" ".join(line) for line in zip(*columns, strict=True))
    return align([metric.name, " ".join([f"{name} [low, high]", *floors]), *together])


def align(lines: list[str]) -> list[str]:
    """Align lines of text to their right."""
    width = max(map(len, lines))
    return [line.rjust(width) for line in lines]


def _cells(rows: pd.DataFrame) -> dict[tuple[str, int | None], Any]:
    """Give the rows by source and layer."""
    layers = [None if layer is pd.NA else layer for layer in rows["layer"].tolist()]
    return dict(zip(zip(rows["source"], layers, strict=True), rows.itertuples(index=False), strict=True))


def _number(row: Any, metric: Metric) -> str:
    return "" if row is None else metric.format(row.mean)


def with_interval(row: Any, metric: Metric) -> str:
    """Write the score of a row of `summarize`, a named tuple, with its interval; nothing where there is no row."""
    if row is None:
        return ""
    ends = "-, -" if np.isnan(row.low) else f"{metric.format(row.low)}, {metric.format(row.high)}"
    return f"{metric.format(row.mean)} [{ends}]"


def _side_by_side(labels: list[str], blocks: list[list[str]]) -> str:
    """Set blocks of lines beside each other, after the labels; those that would pass `WIDTH` go below."""
    labels = align(labels)
    tables = [[labels]]
    for block in blocks:
        if len(tables[-1]) > 1 and sum(2 + len(each[0]) for each in [*tables[-1], block]) - 2 > WIDTH:
            tables.append([labels])
        tables[-1].append(block)
    return "\n\n".join("\n".join("  ".join(line).rstrip() for line in zip(*table, strict=True)) for table in tables)


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Give the distinct names: the known ones in their order, then the others by the alphabet."""
    rank = {name: number for number, name in enumerate(known)}
    return sorted(set(names), key=lambda name: (rank.get(name.partition(":")[0], len(rank)), name))
