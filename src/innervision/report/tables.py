"""Scores of a run: read, averaged over images and written as a table for the terminal."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from innervision.errors import InnerVisionError
from innervision.metrics.interval import bootstrap_interval

METRICS = {
    "cosine": ("cosine", "of the whole feature maps, as published; the mean feature alone scores high"),
    "token_cosine": ("token cosine", "the cosine of each token, averaged over the tokens"),
    "centred_cosine": (
        "centred cosine",
        "the cosine after the mean feature is taken from both; 0 = the mean feature",
    ),
    "explained_variance": ("explained variance", "1 = perfect, 0 = no better than the mean feature"),
}
"""Name and meaning of the similarity metrics, in the order they are shown. Other metrics go by their key."""

SOURCES = {
    "probe": "the probe's prediction for the image",
    "shuffled": "the same probe's prediction for another image",
    "mean": "the mean feature of the training images, which needs no MLLM",
    "expert": "the expert's own features",
}
"""Where the scored features come from."""

COLUMNS = ["image", "target", "layer", "source", "metric", "protocol", "value"]
GROUP = ["target", "source", "layer", "metric", "protocol"]
WIDTH = 120
"""Most characters in a line of a table; metrics that do not fit go into another table below."""

Line = tuple[str, str, int | None]
"""A line of a table: what it is called, and the source and layer that it shows."""


def read_scores(run: Path, evaluation: str = "similarity") -> pd.DataFrame:
    """Read `run/scores/EVALUATION.parquet`: one row per score, with the columns of `COLUMNS`.

    `layer` is a nullable integer: -1 is the output of the vision tower, 0 the embeddings that enter the
    decoder, 1 and up its layers; null belongs to no layer (the mean feature). The other columns are strings
    (as categories), but for `value`, a float64.

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
    strings = [name for name in COLUMNS if name not in ("layer", "value")]
    try:
        scores = pd.read_parquet(path, read_dictionary=strings)  # a tenth of the memory of strings
        scores = scores[COLUMNS].astype(dict.fromkeys(strings, "category") | {"layer": "Int64"})
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are among these
        raise InnerVisionError(f"{path} is not a score table ({error}). Make it again with: {command}") from error
    if scores.empty:
        raise InnerVisionError(f"{path} holds no scores. Make it again with: {command}")
    return scores


def summarize(scores: pd.DataFrame) -> pd.DataFrame:
    """Average a score table over its images: one row per target, source, layer, metric and protocol.

    Columns: those five, `mean`, `low` and `high` (95% bootstrap interval over images, with the same resamples
    for all rows over the same images) and `images` (how many).

    For sources that have layers, a row with a null layer is the average over the decoder layers (1 and up),
    taken within each image first, as published numbers are.

    A mean over a value that is NaN or infinite is not finite either, and its interval is NaN; so is the
    interval of a single image.

    Raises:
        InnerVisionError: the same score stands in the table more than once.
    """
    groups = scores.groupby(GROUP, dropna=False, observed=True)
    summary = groups.size().reset_index()[GROUP].astype({name: str for name in GROUP if name != "layer"})
    row, images = pd.factorize(scores["image"])
    # by name, so that the resamples do not depend on the order of the rows
    row = np.asarray(images, dtype=str).argsort().argsort()[row]
    column = groups.ngroup().to_numpy()
    values = np.full((len(images), len(summary)), np.nan)  # (images, groups)
    values[row, column] = scores["value"]
    scored = np.zeros(values.shape, dtype=bool)
    scored[row, column] = True
    if scored.sum() != len(scores):
        twice = len(scores) - scored.sum()
        raise InnerVisionError(f"{twice} scores stand in the table more than once. Evaluate the run again.")

    averages, averaged, complete = [], [], []
    decoder = summary[summary["layer"].ge(1).fillna(False)]
    for _, layers in decoder.groupby(["target", "source", "metric", "protocol"], observed=True):
        averages.append(layers.iloc[:1])
        averaged.append(values[:, layers.index].mean(axis=1))
        complete.append(scored[:, layers.index].all(axis=1))
    if averages:
        average = pd.concat(averages)
        average["layer"] = pd.NA
        summary = pd.concat([summary, average.astype({"layer": "Int64"})], ignore_index=True)
        values = np.column_stack([values, *averaged])
        scored = np.column_stack([scored, *complete])

    summary["mean"], summary["low"], summary["high"] = _mean_with_ends(values, scored)
    summary["images"] = scored.sum(axis=0)
    # where no image has all the layers there is no average
    return summary[summary["images"] > 0].sort_values(GROUP, ignore_index=True)


def _mean_with_ends(values: NDArray[np.float64], scored: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give mean, low and high (3, groups) of each column over the images that are `scored` in it."""
    result = np.full((3, values.shape[1]), np.nan)
    same_images: dict[bytes, list[int]] = {}  # such columns are resampled together
    for index, images in enumerate(scored.T):
        same_images.setdefault(images.tobytes(), []).append(index)
    for together in same_images.values():
        columns = np.array(together)
        block = values[np.ix_(scored[:, columns[0]], columns)]
        if len(block):
            finite = np.isfinite(block).all(axis=0)
            result[0, columns] = block.mean(axis=0)
            result[1:, columns[finite]] = bootstrap_interval(block[:, finite], confidence=0.95)
    return result


def format_table(summary: pd.DataFrame, targets: Iterable[str]) -> str:
    """Write rows of `summarize` as plain text: for each target a line per layer, the average, then the floors.

    What the words mean stands once, below. Lines are at most 120 characters long: metrics that do not fit follow
    below.

    Raises:
        InnerVisionError: the summary does not hold one of the targets.
    """
    known = list(summary["target"].unique())
    if unknown := [target for target in targets if target not in known]:
        raise InnerVisionError(f"there are no scores of the target {unknown[0]!r}, only of: {', '.join(known)}")
    chosen = [summary[summary["target"] == target] for target in targets]
    tables = [_format_protocol(rows) for table in chosen for _, rows in table.groupby("protocol")]
    return "\n\n".join([*tables, _explain(pd.concat(chosen))])


def _format_protocol(rows: pd.DataFrame) -> str:
    metrics = _in_order(rows["metric"], METRICS)
    sources = _in_order(rows["source"], SOURCES)
    layers = _layers(rows)
    images = f"{rows['images'].min():,}"
    if rows["images"].nunique() > 1:
        images += f" to {rows['images'].max():,}"
    lines: list[Line] = [("vision" if layer == -1 else str(layer), "probe", layer) for layer in layers]
    lines += [("avg", "probe", None)] if layers[-1:] > [0] else []
    lines += [(source, source, None) for source in sources if source not in ("probe", "shuffled")]
    blocks = [_metric_block(metric, rows[rows["metric"] == metric], lines) for metric in metrics]

    return "\n".join(
        [
            f"{rows['target'].iloc[0]}: {images} images, {rows['protocol'].iloc[0]} protocol",
            "",
            _side_by_side(["", "layer", *(label for label, _, _ in lines)], blocks),
        ]
    )


def _explain(rows: pd.DataFrame) -> str:
    """Say what the words of the tables mean."""
    notes = {source: SOURCES.get(source, "") for source in _in_order(rows["source"], SOURCES)}
    notes["[low, high]"] = "95% interval of the mean over the images (bootstrap)"
    layers = _layers(rows)
    decoder = [layer for layer in layers if layer >= 1]
    if layers and layers[0] < 1:
        notes["vision, 0"] = "the output of the vision tower, and the embeddings that enter the decoder"
    if decoder:
        notes["avg"] = f"average over the decoder layers, {decoder[0]} to {decoder[-1]}"
    notes |= dict(METRICS[metric] for metric in _in_order(rows["metric"], METRICS) if metric in METRICS)
    return "\n".join(f"{name:<18}  {meaning}" for name, meaning in notes.items())


def _layers(rows: pd.DataFrame) -> list[int]:
    return sorted(int(layer) for layer in rows["layer"].dropna().unique())


def _metric_block(metric: str, rows: pd.DataFrame, lines: list[Line]) -> list[str]:
    """Give two header lines and the cells of `lines`, right-aligned to one width."""
    layers = [None if layer is pd.NA else layer for layer in rows["layer"].tolist()]
    cells = dict(zip(zip(rows["source"], layers, strict=True), rows.itertuples(index=False), strict=True))
    shuffled = "shuffled" in set(rows["source"])
    block = [METRICS.get(metric, (metric, ""))[0], "probe [low, high]" + shuffled * " shuffled"]
    beside = [_number(cells.get(("shuffled", layer))) if source == "probe" else "" for _, source, layer in lines]
    for (_, source, layer), other in zip(lines, beside, strict=True):
        cell = _with_interval(cells.get((source, layer)))
        block.append(f"{cell} {other:>{max(map(len, beside))}}" if shuffled else cell)
    width = max(map(len, block))
    return [line.rjust(width) for line in block]


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


def _in_order(names: pd.Series, known: Iterable[str]) -> list[str]:
    """Give the distinct names: the known ones in their order, then the others by the alphabet."""
    found = set(names)
    return [name for name in known if name in found] + sorted(found.difference(known))
