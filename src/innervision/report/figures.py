"""Curves over layers, fit to print: a panel per target and metric, a line per run, intervals, floors and ceilings."""

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from innervision.errors import InnerVisionError, printable
from innervision.files import atomic_write
from innervision.metrics.registry import METRICS, Metric, find_metric
from innervision.report.files import evaluations_of, read_facts, read_scores, read_settings, run_protocol
from innervision.report.tables import holds, in_order, summarize

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""One per run: the palette of Okabe and Ito (2008), made for colour-blind readers, less its pale yellow."""

GREY = "#666666"

FLOORS: dict[str, tuple[Any, str]] = {
    "shuffled": (":", "another image (shuffled)"),
    "blank": ((0, (1, 4)), "a grey image (blank)"),
}
"""Sources that have a score for each layer beside the probe's: their line's style and name."""

LEVELS: dict[str, tuple[Any, str]] = {
    "mean": ("--", "mean feature (no MLLM)"),
    "zero": ((0, (6, 1, 1, 1, 1, 1)), "zero feature (no MLLM)"),
    "expert": ("-.", "the expert's own features"),
    "plain": ((0, (8, 1)), "the expert as it is"),
}
"""Sources that have one score for all layers: their line's style and name."""

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.2,
    "pdf.fonttype": 42,  # text stays text; some venues refuse the default Type 3
}


def plot_curves(
    runs: Sequence[str | Path],
    out: str | Path,
    metric: str | Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> list[Path]:
    """Draw `curves_figure` to a PNG (300 dpi) and a PDF, and give their paths.

    Both have the stem of `out`; its own suffix does not matter.

    Raises:
        InnerVisionError: as `curves_figure`, or a file cannot be written.
    """
    return write_figure(curves_figure(runs, metric, labels), out)


def write_figure(figure: Figure, out: str | Path) -> list[Path]:
    """Write a figure as PNG (300 dpi) and PDF, and give their paths.

    Raises:
        InnerVisionError: a file cannot be written.
    """
    out = Path(out)
    if out.is_dir():
        raise InnerVisionError(f"{out} is a folder. Name the figure to write, as in {out / 'curves.png'}")
    stem = out.stem if out.suffix[1:].lower() in figure.canvas.get_supported_filetypes() else out.name
    paths = [out.with_name(f"{stem}.{kind}") for kind in ("png", "pdf")]
    for path in paths:
        with matplotlib.rc_context(STYLE), atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=300)
    return paths


def curves_figure(
    runs: Sequence[str | Path],
    metric: str | Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> Figure:
    """Draw scores over layers: a column of panels per target, a row per metric, a line per run.

    Where no metric is named, the main ones of all that the runs have been scored by are drawn: two of similarity (the
    published cosine, on which the mean feature alone scores high, and the centred one, which counts only what the mean
    does not say), and below them the main metric of each target's task.

    The decoder layers stand at their numbers; the vision tower's output ("vision") and the embeddings that
    enter the decoder ("emb") stand apart at their left. Bands and bars are 95% intervals over images; where too few
    images have the classes for the interval of their mean, there is none. Floors
    are the same probe's score for another image (dotted) and a feature that needs no MLLM (dashed); ceilings are the
    expert's own features and the expert as it is. They are grey where they are the same for all runs. A cross at the
    bottom marks a layer whose scores are not all finite.

    A run goes by its label, else by its MLLM, and by its folder too where two runs share the MLLM; by its protocol too
    where that is not `standard`. Where all runs are of one other protocol, scores are drawn by its rule; otherwise by
    the standard one, so that all lines of a panel are scored alike. What has no score by that rule is drawn by the
    other.

    Raises:
        InnerVisionError: a run or its scores are missing, a run has no scores of a metric, there are more
            than seven lines, or not as many labels as runs.
    """
    read = [_read_run(run) for run in runs]
    curves = _make_curves(read, name_runs([run.path for run in read], labels))
    asked = [metric] if isinstance(metric, str) else metric
    rows = _similarity_rows(read, asked) + ([] if asked else _task_rows(read))
    order = list(dict.fromkeys(target for run in read for target in run.summary["target"]))
    targets = sorted({target for row in rows for target in row}, key=order.index)
    depth = max(int(curve.summary["layer"].max()) for curve in curves)
    with matplotlib.rc_context(STYLE):
        size = (max(3.3, 2.25 * len(targets)), 1.75 * len(rows) + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(rows), len(targets), sharex=True, squeeze=False)
        for target, column in zip(targets, panels.T, strict=True):
            column[0].set_title(plain_text(target))
            shown = [(panel, row[target]) for panel, row in zip(column, rows, strict=True) if target in row]
            for panel, key in shown:
                _draw_panel(panel, curves, target, _metric(read, key), key, depth)
            shown[-1][0].set_xlabel("decoder layer")
            shown[-1][0].tick_params(labelbottom=True)
        for row, names in zip(panels, rows, strict=True):
            first = next(target for target in targets if target in names)
            for target, panel in zip(targets, row, strict=True):
                if target not in names:
                    panel.axis("off")
                elif target == first or len(set(names.values())) > 1:
                    panel.set_ylabel(_axis_label(_metric(read, names[target]), curves, target, names[target]))
        _add_legend(figure, curves, {key for row in rows for key in row.values()})
    return figure


@dataclass
class Curve:
    """One line of each panel."""

    label: str
    color: str
    summary: pd.DataFrame
    """As `summarize` gives it, by one rule for each metric and target."""

    def rows(self, target: str, metric: str, source: str) -> pd.DataFrame:
        """Give the rows by layer; for a source without layers, its one row."""
        wanted = self.summary[["target", "metric", "source"]].eq([target, metric, source]).all(axis=1)
        rows = self.summary[wanted]
        return rows[rows["layer"].notna() == (source not in LEVELS)].sort_values("layer")


@dataclass
class _Run:
    """All scores of a run."""

    path: Path
    protocol: str
    summary: pd.DataFrame
    """Of all evaluations, in their order and that of the targets in them; a column names the evaluation."""
    metrics: dict[str, Metric]
    """Those that tasks brought."""


def _read_run(path: str | Path) -> _Run:
    parts: list[pd.DataFrame] = []
    metrics: dict[str, Metric] = {}
    protocols: list[str] = []
    for evaluation in evaluations_of(path):
        scores, facts = read_scores(path, evaluation), read_facts(path, evaluation)
        metrics |= facts.metrics
        protocols.append(run_protocol(path, facts))
        summary = summarize(scores, facts.metrics)
        summary = summary[summary["group"].isna()].assign(evaluation=evaluation)
        parts += [summary[summary["target"] == target] for target in scores["target"].unique()]
    return _Run(Path(path), protocols[0], pd.concat(parts, ignore_index=True), metrics)


def _make_curves(runs: Sequence[_Run], labels: Sequence[str]) -> list[Curve]:
    """Give a curve for each run, scored by the rule of the one protocol that all are of, or by the standard one."""
    if len(runs) > len(COLORS):
        raise InnerVisionError(f"a figure holds {len(COLORS)} lines at most. Plot fewer runs.")
    protocols = {run.protocol for run in runs}
    rule = protocols.pop() if len(protocols) == 1 else "standard"
    curves = []
    for run, label, color in zip(runs, labels, COLORS, strict=False):
        name = label if run.protocol == "standard" else f"{label}, {run.protocol} protocol"
        by_rule = run.summary["protocol"] == rule
        has = by_rule.groupby([run.summary["target"], run.summary["metric"]]).transform("any")
        curves.append(Curve(plain_text(name), color, run.summary[by_rule | ~has]))
    return curves


def _similarity_rows(runs: Sequence[_Run], metrics: Sequence[str] | None) -> list[dict[str, str]]:
    """Give a row of panels, by target its metric, for each metric asked for; else for the main ones of similarity."""
    for run in runs:
        known = in_order(run.summary["metric"], [*METRICS, *run.metrics])
        if missing := [key for key in metrics or () if key not in known]:
            raise InnerVisionError(
                f"{run.path} has no scores of the metric {missing[0]!r}, only of: {', '.join(known)}"
            )
    summary = pd.concat([run.summary for run in runs])
    if metrics is None:
        summary = summary[summary["evaluation"] == "similarity"]
        metrics = in_order((key for key in summary["metric"] if _metric(runs, key).main), METRICS)
    return [dict.fromkeys(summary[summary["metric"] == key]["target"].unique(), key) for key in metrics]


def _task_rows(runs: Sequence[_Run]) -> list[dict[str, str]]:
    """Give rows of panels with the main metrics of the tasks of each target; runs may have different ones."""
    main: dict[str, list[str]] = {}
    for run in runs:
        tasks = run.summary[run.summary["evaluation"] != "similarity"]
        for (_, target), scores in tasks.groupby(["evaluation", "target"], sort=False):
            keys = in_order(scores["metric"], [*METRICS, *run.metrics])
            key = next((key for key in keys if _metric(runs, key).main), keys[0])
            of_target = main.setdefault(str(target), [])
            of_target += [key] if key not in of_target else []
    most = max(map(len, main.values()), default=0)
    return [{target: keys[i] for target, keys in main.items() if i < len(keys)} for i in range(most)]


def plain_text(text: str) -> str:
    """Write a text from a run as matplotlib shows it as it is: `$` begins a formula, which may be wrong."""
    return printable(text).replace("$", r"\$")


def _metric(runs: Sequence[_Run], key: str) -> Metric:
    return find_metric(key, {word: metric for run in runs for word, metric in run.metrics.items()})


def _axis_label(metric: Metric, curves: Sequence[Curve], target: str, key: str) -> str:
    """Say what an axis shows, by which rule if it is not the standard one, and which direction is better."""
    drawn = [curve.summary[curve.summary[["target", "metric"]].eq([target, key]).all(axis=1)] for curve in curves]
    rules = sorted({rule for rows in drawn for rule in rows["protocol"]} - {"standard"})
    rule = "".join(f"{rule} rule; " for rule in rules)
    name, better = plain_text(metric.axis or metric.name), "higher" if metric.higher_is_better else "lower"
    return f"{name}\n({rule}{better} is better)"


def name_runs(runs: Sequence[str | Path], labels: Sequence[str] | None = None) -> Sequence[str]:
    """Name each run by its MLLM, by its folder too where that is not enough, and else by its whole path."""
    if labels is not None:
        if len(labels) != len(runs):
            raise InnerVisionError(f"{len(labels)} labels for {len(runs)} runs. Give one label per run, or none.")
        return labels
    names = [[name := _mllm(path), f"{name} ({path.resolve().name})", f"{name} ({path})"] for path in map(Path, runs)]
    count = Counter(chain.from_iterable(names))
    return [next((name for name in own if count[name] == 1), own[-1]) for own in names]


def _mllm(run: Path) -> str:
    """Name a run's MLLM, a folder by its last part, and say where its weights are random."""
    settings = read_settings(run)
    if not isinstance(name := settings.get("mllm"), str):
        raise InnerVisionError(f"{run / 'run.yaml'} does not name its mllm. Give labels for the runs.")
    name = Path(name).name if Path(name).is_absolute() or name.count("/") != 1 else name
    part = {"llm": "random LLM", "all": "random weights"}.get(str(settings.get("random_weights")))
    return f"{name}, {part}" if part else name


def _draw_panel(panel: Axes, curves: list[Curve], target: str, metric: Metric, key: str, depth: int) -> None:
    """Draw the lines of all runs for one target and metric; `key` is the metric's in the table."""
    for curve in curves:
        for floor in [floor for floor in FLOORS if floor in metric.floors]:
            _draw_line(panel, curve, target, key, floor, depth)
        _draw_line(panel, curve, target, key, "probe", depth)
    for source, (linestyle, _) in LEVELS.items():
        if source in ("mean", "zero") and source not in metric.floors:
            continue
        levels = [(curve, value) for curve in curves for value in curve.rows(target, key, source)["mean"]]
        same = bool(levels) and np.ptp([value for _, value in levels]) < 0.002  # less than a line's width
        for curve, value in levels:
            color = GREY if same else curve.color
            panel.axhline(value, color=color, linestyle=linestyle, label=f"{source}: {curve.label}")

    every = next(step for step in (1, 2, 4, 8, 16, 32, 64) if depth <= 5 * step)
    found = {int(layer) for curve in curves for layer in curve.summary["layer"].dropna()}
    names = {layer: name for layer, name in ((-1, "vision"), (0, "emb")) if layer in found}
    names |= {layer: str(layer) for layer in range(1, depth + 1) if layer == 1 or layer % every == 0}
    panel.set_xticks(_positions(list(names), depth), list(names.values()))
    for tick in panel.get_xticklabels()[: sum(layer < 1 for layer in names)]:
        tick.set_rotation(90 if depth > 6 else 0)
    panel.locator_params(axis="y", nbins=5)


def _draw_line(panel: Axes, curve: Curve, target: str, metric: str, source: str, depth: int) -> None:
    """Draw the scores of one source of a run over its layers."""
    rows = curve.rows(target, metric, source)
    if rows.empty:
        return
    rows = rows.assign(**{end: rows[end].where(holds(rows)) for end in ("low", "high")})
    layers, mean, low, high = (rows[name].to_numpy(float) for name in ("layer", "mean", "low", "high"))
    x = _positions(layers, depth)
    style: dict[str, Any] = {"color": curve.color, "label": f"{source}: {curve.label}"}
    if source in FLOORS:
        panel.plot(x, mean, linestyle=FLOORS[source][0], linewidth=0.9, **style)
    else:
        within, before = layers >= 1, layers < 1
        marker = "o" if within.sum() <= 12 else None
        panel.plot(x[within], mean[within], linewidth=1.4, marker=marker, markersize=2.5, **style)
        panel.fill_between(x[within], low[within], high[within], color=curve.color, alpha=0.2, linewidth=0)
        # what comes before the decoder: points with bars, led to the line by a faint one
        panel.plot(x, mean, color=curve.color, linewidth=0.6, alpha=0.5)
        bars = np.abs(np.stack([low, high]) - mean)[:, before]
        panel.errorbar(x[before], mean[before], bars, fmt="o", markersize=2.5, linewidth=1, color=curve.color)
    for lost in x[~np.isfinite(mean)]:
        panel.plot(lost, 0.03, "x", markersize=4, color=curve.color, transform=panel.get_xaxis_transform())


def _positions(layers: Sequence[int] | NDArray[np.float64], depth: int) -> NDArray[np.float64]:
    """Give decoder layers their number, and set what comes before them as far apart as its names need."""
    layers = np.asarray(layers, dtype=float)
    return np.where(layers < 1, 1 + (layers - 1) * max(1, 0.1 * depth), layers)


def _add_legend(figure: Figure, curves: list[Curve], metrics: set[str]) -> None:
    """Put the legend above the panels, in as few lines as the width allows, and give it room of its own."""
    drawn = pd.concat([curve.summary[curve.summary["metric"].isin(metrics)] for curve in curves])
    sources, images = set(drawn["source"]), set(drawn["images"])
    finite = np.isfinite(drawn["mean"]).all()
    entries: list[Artist] = [
        Line2D([], [], color=curve.color, linewidth=1.4, label=textwrap.fill(f"probe of {curve.label}", 46))
        for curve in curves
    ]
    entries += [
        Line2D([], [], color=GREY, linestyle=linestyle, label=name)
        for source, (linestyle, name) in (FLOORS | LEVELS).items()
        if source in sources
    ]
    over = f"{images.pop():,} images" if len(images) == 1 else "images"
    entries.append(Patch(color=GREY, alpha=0.3, linewidth=0, label=f"95% interval over {over}"))
    if not finite:
        entries.append(Line2D([], [], color=GREY, marker="x", linestyle="", label="scores that are not finite"))

    for lines in range(1, len(entries) + 1):
        columns = math.ceil(len(entries) / lines)
        legend = figure.legend(handles=entries, loc="outside upper center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= 0.95 * figure.bbox.width:
            figure.set_figheight(figure.get_figheight() + legend.get_window_extent().height / figure.dpi)
            return
        legend.remove()
