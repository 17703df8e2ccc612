"""Scores of a run: read, averaged over images and written as a table for the terminal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from innervision.errors import InnerVisionError
from innervision.files import atomic_write
from innervision.report.resample import interval_of, resample

METRICS = {
    "accuracy": ("accuracy", "share of the pairs in which the closer point is found"),
    "ties": ("ties", "share of the pairs in which neither point is closer; they count as wrong"),
    "miou": ("mIoU", "intersection over union, the mean over the classes"),
    "pixel_accuracy": ("pixel accuracy", "share of the pixels that are given their class"),
    "fid": ("FID", "Fréchet distance of the drawn images from the real ones on Inception; lower is better"),
    "kid": ("KID × 1000", "kernel distance on the same, whatever the number of images; lower is better"),
    "frechet": (
        "Fréchet distance",
        "of drawn images from the real ones, on that model's features; lower is better",
    ),
    "kernel": ("kernel distance × 1000", "on the same, whatever the number of images; lower is better"),
    "image_cosine": ("image cosine", "centred cosine of a drawn image with its real one; 0 = nothing in common"),
    "cosine": ("cosine", "of the whole feature maps, as published; the mean feature alone scores high"),
    "token_cosine": ("token cosine", "the cosine of each token, averaged over the tokens"),
    "centred_cosine": (
        "centred cosine",
        "the cosine after the mean feature is taken from both; 0 = the mean feature",
    ),
    "explained_variance": ("explained variance", "1 = perfect, 0 = no better than the mean feature"),
}
"""Name and meaning of the metrics, in the order they are shown. Other metrics go by their key.

A key may name a model that the metric depends on, after a colon.
"""

SOURCES = {
    "probe": "the probe's prediction for the image",
    "shuffled": "the same probe's prediction for another image",
    "zero": "a feature of zeros, which needs no MLLM",
    "mean": "the mean feature of the training images, which needs no MLLM",
    "expert": "the expert's own features, in the place of a prediction",
    "plain": "the expert as it is",
}
"""Where the scored features come from."""

COLUMNS = ["image", "target", "layer", "source", "metric", "protocol", "value"]
GROUP = ["target", "source", "layer", "metric", "protocol"]
MOST_GROUPS = 12
"""Where a metric has more groups, as mIoU has classes, they are left to the file of all scores."""
WIDTH = 120
"""Most characters in a line of a table; metrics that do not fit go into another table below."""

Line = tuple[str, str, int | None]
"""A line of a table: what it is called, and the source and layer that it shows."""


def read_scores(run: Path, evaluation: str = "similarity") -> pd.DataFrame:
    """Read `run/scores/EVALUATION.parquet`: one row per score, with the columns of `COLUMNS`.

    `layer` is a nullable integer: -1 is the output of the vision tower, 0 the embeddings that enter the
    decoder, 1 and up its layers; null belongs to no layer (the mean feature). The other columns are strings
    (as categories), but for `value`, a float64. The tables of tasks have two more: `group`, a class or type of
    scene (null: the score belongs to none), and `weight`, what an image's value weighs in the mean, a float64.

    Raises:
        InnerVisionError: there is no such run, it has not been evaluated, or the file is not a score table.
    """
    path = run / "scores" / f"{evaluation}.parquet"
    data = "--images" if evaluation == "similarity" else "--data"
    command = f"innervision evaluate {evaluation} {run} {data} PATH"
    if not (run / "run.yaml").is_file():
        what = "is not a run (it has no run.yaml)" if run.is_dir() else "does not exist"
        train = f"innervision train --mllm ID --targets NAMES --images PATH --out {run}"
        raise InnerVisionError(f"{run} {what}. Make a run with: {train}")
    if not path.is_file():
        raise InnerVisionError(f"{run} has no {evaluation} scores yet. Make them with: {command}")
    try:
        weighted = [name for name in ("group", "weight") if name in pq.read_schema(path).names]
        strings = [name for name in [*COLUMNS, *weighted] if name not in ("layer", "value", "weight")]
        scores = pd.read_parquet(path, read_dictionary=strings)  # a tenth of the memory of strings
        scores = scores[[*COLUMNS, *weighted]].astype(dict.fromkeys(strings, "category") | {"layer": "Int64"})
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are among these
        raise InnerVisionError(f"{path} is not a score table ({error}). Make it again with: {command}") from error
    if scores.empty:
        raise InnerVisionError(f"{path} holds no scores. Make it again with: {command}")
    return scores


def summarize(scores: pd.DataFrame) -> pd.DataFrame:
    """Score a table over its images: one row per target, source, layer, metric, protocol and group.

    Columns: those six, `mean`, `low` and `high` (95% bootstrap interval over images, with the same resamples for all
    rows over the same images) and `images` (how many). A null group is the score of the layer; a null layer, for
    sources that have layers, is the average over the decoder layers (1 and up). See `innervision.report.resample`.

    A score over a value that is NaN or infinite is not finite either, and its interval is NaN; so is the interval of
    a single image.

    Raises:
        InnerVisionError: the same score stands in the table more than once.
    """
    rows, draws = resample(scores)
    low, high = interval_of(draws[1:])
    rows = rows.assign(mean=draws[0], low=low, high=high)
    # a group may be missing from a resample, a score of the whole may not
    broken = rows["group"].isna() & pd.Series(~np.isfinite(draws).all(axis=0))
    rows.loc[broken | (rows["images"] == 1), ["low", "high"]] = np.nan
    rows = rows[rows["group"].isna() | rows["mean"].notna()]  # without groups that no image has
    # a first sort by group, then one that keeps this order
    rows = rows.sort_values("group", key=lambda group: group.fillna(""), kind="stable")
    return rows.sort_values(GROUP, kind="stable", ignore_index=True)[[*GROUP, "group", "mean", "low", "high", "images"]]


def write_summary(summary: pd.DataFrame, path: Path) -> None:
    """Write rows of `summarize` as CSV: every score with its interval, by group as well.

    Raises:
        InnerVisionError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        summary.to_csv(temporary, index=False)


def metric_name(metric: str) -> str:
    """Give the name of a metric, and of the model that it depends on."""
    key, _, model = metric.partition(":")
    name, _ = METRICS.get(key, (metric, ""))
    return f"{name} ({model})" if model and key in METRICS else name


def format_table(summary: pd.DataFrame, targets: Iterable[str]) -> str:
    """Write rows of `summarize` as plain text: for each target a line per layer, the average, then the floors.

    What the words mean stands once, below. Lines are at most 120 characters long: metrics that do not fit follow
    below.

    Raises:
        InnerVisionError: the summary does not hold one of the targets.
    """
    chosen = _choose(summary, targets)
    return "\n\n".join([_format_tables(chosen, "probe"), _explain(pd.concat(chosen))])


def format_differences(differences: pd.DataFrame, targets: Iterable[str]) -> str:
    """Write rows of `compare` as plain text, as `format_table` does.

    Raises:
        InnerVisionError: there is none of one of the targets.
    """
    chosen = _choose(differences, targets)
    notes = {
        "difference": "the score of the first run less that of the second; above 0 the first has the larger score",
        "[low, high]": "95% interval of the paired difference (bootstrap over images): without 0, the runs differ",
        "avg": "difference of the averages over decoder layers: over those of both runs, or over each run's own "
        "where their models are not equally deep",
    }
    return "\n\n".join([_format_tables(chosen, "difference"), _write_notes(notes)])


def _choose(summary: pd.DataFrame, targets: Iterable[str]) -> list[pd.DataFrame]:
    known = list(summary["target"].unique())
    if unknown := [target for target in targets if target not in known]:
        raise InnerVisionError(f"there are no scores of the target {unknown[0]!r}, only of: {', '.join(known)}")
    return [summary[summary["target"] == target] for target in targets]


def _format_tables(chosen: Sequence[pd.DataFrame], cell: str) -> str:
    """Write the tables of several targets; `cell` says what a score is."""
    return "\n\n".join(
        _format_protocol(table[table["protocol"] == protocol], cell)
        for table in chosen
        for protocol in in_order(table["protocol"], ["standard"])
    )


def _format_protocol(table: pd.DataFrame, cell: str) -> str:
    rows = table[table["group"].isna()]
    metrics = in_order(rows["metric"], METRICS)
    sources = in_order(rows["source"], SOURCES)
    layers = _layers(rows)
    images = f"{rows['images'].min():,}"
    if rows["images"].nunique() > 1:
        images += f" to {rows['images'].max():,}"
    lines: list[Line] = [("vision" if layer == -1 else str(layer), "probe", layer) for layer in layers]
    lines += [("avg", "probe", None)] if layers[-1:] > [0] else []
    lines += [(source, source, None) for source in sources if source not in ("probe", "shuffled")]
    blocks = [_metric_block(metric, rows[rows["metric"] == metric], lines, cell) for metric in metrics]

    return "\n".join(
        [
            f"{rows['target'].iloc[0]}: {images} {'image' if images == '1' else 'images'}, "
            f"{rows['protocol'].iloc[0]} protocol",
            "",
            _side_by_side(["", "layer", *(label for label, _, _ in lines)], blocks),
            *_format_groups(table[table["group"].notna()], lines),
        ]
    )


def _format_groups(rows: pd.DataFrame, lines: list[Line]) -> Iterator[str]:
    """Write the scores of each group beside each other, metric by metric."""
    for metric in in_order(rows["metric"], METRICS):
        groups = rows[rows["metric"] == metric].groupby("group")
        if not 1 < groups.ngroups <= MOST_GROUPS:
            continue
        blocks = []
        for name, scores in groups:
            cells = _cells(scores)
            block = [str(name), *(_number(cells.get((source, layer))) for _, source, layer in lines)]
            width = max(map(len, block))
            blocks.append([line.rjust(width) for line in block])
        yield f"\n{metric_name(metric)} by group\n"
        yield _side_by_side(["layer", *(label for label, _, _ in lines)], blocks)


def _explain(rows: pd.DataFrame) -> str:
    """Say what the words of the tables mean."""
    notes = {source: SOURCES.get(source, "") for source in in_order(rows["source"], SOURCES)}
    notes["[low, high]"] = "95% interval of the score (bootstrap over the images)"
    layers = _layers(rows)
    decoder = [layer for layer in layers if layer >= 1]
    if layers and layers[0] < 1:
        notes["vision, 0"] = "the output of the vision tower, and the embeddings that enter the decoder"
    if decoder:
        span = f"s, {decoder[0]} to {decoder[-1]}" if len(decoder) > 1 else f", {decoder[0]}"
        notes["avg"] = f"average over the decoder layer{span}"
    keys = [metric.partition(":")[0] for metric in in_order(rows["metric"], METRICS)]
    notes |= dict(METRICS[key] for key in keys if key in METRICS)
    return _write_notes(notes)


def _write_notes(notes: Mapping[str, str]) -> str:
    return "\n".join(f"{name:<18}  {meaning}" for name, meaning in notes.items())


def _layers(rows: pd.DataFrame) -> list[int]:
    return sorted(int(layer) for layer in rows["layer"].dropna().unique())


def _metric_block(metric: str, rows: pd.DataFrame, lines: list[Line], name: str) -> list[str]:
    """Give two header lines and the cells of `lines`, right-aligned to one width."""
    cells = _cells(rows)
    shuffled = "shuffled" in set(rows["source"])
    block = [metric_name(metric), f"{name} [low, high]" + shuffled * " shuffled"]
    beside = [_number(cells.get(("shuffled", layer))) if source == "probe" else "" for _, source, layer in lines]
    for (_, source, layer), other in zip(lines, beside, strict=True):
        cell = _with_interval(cells.get((source, layer)))
        block.append(f"{cell} {other:>{max(map(len, beside))}}" if shuffled else cell)
    width = max(map(len, block))
    return [line.rjust(width) for line in block]


def _cells(rows: pd.DataFrame) -> dict[tuple[str, int | None], Any]:
    """Give the rows by source and layer."""
    layers = [None if layer is pd.NA else layer for layer in rows["layer"].tolist()]
    return dict(zip(zip(rows["source"], layers, strict=True), rows.itertuples(index=False), strict=True))


def _number(row: Any) -> str:
    return "" if row is None else f"{row.mean:z.3f}"


def _with_interval(row: Any) -> str:
    if row is None:
        return ""
    ends = "-, -" if np.isnan(row.low) else f"{row.low:z.3f}, {row.high:z.3f}"
    return f"{row.mean:z.3f} [{ends}]"


def _side_by_side(labels: list[str], blocks: list[list[str]]) -> str:
    """Set blocks of lines beside each other, after the labels; those that would pass `WIDTH` go below."""
    start = max(map(len, labels))
    tables, width = [[[label.rjust(start) for label in labels]]], start
    for block in blocks:
        width += 2 + len(block[0])
        if width > WIDTH and len(tables[-1]) > 1:
            tables.append(tables[0][:1])
            width = start + 2 + len(block[0])
        tables[-1].append(block)
    return "\n\n".join("\n".join("  ".join(line).rstrip() for line in zip(*table, strict=True)) for table in tables)


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Give the distinct names: the known ones in their order, then the others by the alphabet."""
    rank = {name: number for number, name in enumerate(known)}
    return sorted(set(names), key=lambda name: (rank.get(name.partition(":")[0], len(rank)), name))
