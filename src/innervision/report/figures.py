"""Curves over layers, fit to print: a panel per target and metric, a line per run, intervals, floors and ceilings."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import yaml
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from innervision.errors import InnerVisionError
from innervision.files import atomic_write
from innervision.report.tables import METRICS, in_order, read_scores, summarize

AXIS_LABELS = {
    "cosine": "cosine similarity\n(higher is better)",
    "token_cosine": "cosine similarity per token\n(higher is better)",
    "centred_cosine": "centred cosine similarity\n(higher is better)",
    "explained_variance": "explained variance\n(higher is better)",
    "accuracy": "accuracy over point pairs\n(higher is better)",
    "ties": "share of ties\n(lower is better)",
    "miou": "mIoU\n(higher is better)",
    "pixel_accuracy": "pixel accuracy\n(higher is better)",
    "fid": "FID\n(lower is better)",
    "kid": "KID × 1000\n(lower is better)",
    "frechet": "Fréchet distance{model}\n(lower is better)",
    "kernel": "kernel distance × 1000{model}\n(lower is better)",
    "image_cosine": "image cosine{model}\n(higher is better)",
}

SIMILARITY = ("cosine", "centred_cosine")
"""Metrics of similarity that are drawn where none is named: `cosine` is what others published, but the mean feature
alone scores high on it; `centred_cosine` counts only what the mean does not say."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""One per run: the palette of Okabe and Ito (2008), made for colour-blind readers, less its pale yellow."""

GREY = "#666666"

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
    runs: Sequence[Path],
    out: Path,
    metric: str | Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> list[Path]:
    """Draw `curves_figure` to a PNG (300 dpi) and a PDF, and give their paths.

    Both have the stem of `out`; its own suffix does not matter.

    Raises:
        InnerVisionError: as `curves_figure`, or a file cannot be written.
    """
    if out.is_dir():
        raise InnerVisionError(f"{out} is a folder. Name the figure to write, as in {out / 'curves.png'}")
    figure = curves_figure(runs, metric, labels)
    stem = out.stem if out.suffix[1:].lower() in figure.canvas.get_supported_filetypes() else out.name
    paths = [out.with_name(f"{stem}.{kind}") for kind in ("png", "pdf")]
    for path in paths:
        with matplotlib.rc_context(STYLE), atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=300)
    return paths


def curves_figure(
    runs: Sequence[Path],
    metric: str | Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> Figure:
    """Draw scores over layers: a column of panels per target, a row per metric, a line per run.

    Where no metric is named, all that the runs have been scored by is drawn: two metrics of similarity, and below
    them the main metric of each target's task.

    The decoder layers stand at their numbers; the vision tower's output ("vision") and the embeddings that
    enter the decoder ("emb") stand apart at their left. Bands and bars are 95% intervals over images. Floors
    are the same probe's score for another image (dotted) and a feature that needs no MLLM (dashed); ceilings are the
    expert's own features and the expert as it is. They are grey where they are the same for all runs. A cross at the
    bottom marks a layer whose scores are not all finite.

    A run goes by its label, else by its MLLM, and by its folder too where two runs share the MLLM.

    Raises:
        InnerVisionError: a run or its scores are missing, a run has no scores of a metric, there are more
            than seven lines, or not as many labels as runs.
    """
    curves, targets, rows = _read_curves(runs, [metric] if isinstance(metric, str) else metric, labels)
    depth = max(int(curve.summary["layer"].max()) for curve in curves)
    with matplotlib.rc_context(STYLE):
        size = (max(3.3, 2.25 * len(targets)), 1.75 * len(rows) + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(rows), len(targets), sharex=True, squeeze=False)
        for target, column in zip(targets, panels.T, strict=True):
            column[0].set_title(target)
            shown = [(panel, row[target]) for panel, row in zip(column, rows, strict=True) if target in row]
            for panel, name in shown:
                _draw_panel(panel, curves, target, name, depth)
            shown[-1][0].set_xlabel("decoder layer")
            shown[-1][0].tick_params(labelbottom=True)
        for row, names in zip(panels, rows, strict=True):
            for i, (target, panel) in enumerate(zip(targets, row, strict=True)):
                if target not in names:
                    panel.axis("off")
                elif i == 0 or len(set(names.values())) > 1:
                    panel.set_ylabel(_axis_label(names[target]))
        _add_legend(figure, curves)
    return figure


@dataclass
class Curve:
    """One line of each panel."""

    label: str
    color: str
    summary: pd.DataFrame
    """As `summarize` gives it."""

    def rows(self, target: str, metric: str, source: str) -> pd.DataFrame:
        """Give the rows by layer; for a source without layers, its one row."""
        wanted = self.summary[["target", "metric", "source"]].eq([target, metric, source]).all(axis=1)
        rows = self.summary[wanted]
        return rows[rows["layer"].notna() == (source not in LEVELS)].sort_values("layer")


def _read_curves(
    runs: Sequence[Path], metrics: Sequence[str] | None, labels: Sequence[str] | None
) -> tuple[list[Curve], list[str], list[dict[str, str]]]:
    """Give a curve per run and protocol, their targets in the order of the tables, and by row each target's metric.

    What was not scored by a run's own protocol has the scores of the standard one.
    """
    if labels is not None and len(labels) != len(runs):
        raise InnerVisionError(f"{len(labels)} labels for {len(runs)} runs. Give one label per run, or none.")
    curves: list[Curve] = []
    rows: dict[str, dict[str, str]] = {name: {} for name in metrics or SIMILARITY}
    of_tasks: dict[str, list[str]] = {}
    """Of each target the main metrics of its task; runs may have been scored by different ones."""
    targets: list[str] = []
    for label, run in zip(labels or _default_labels(runs), runs, strict=True):
        evaluations = sorted(path.stem for path in (run / "scores").glob("*.parquet"))
        evaluations.sort(key="similarity".__ne__)  # first, since it has all targets, in their order
        tables = {evaluation: read_scores(run, evaluation) for evaluation in evaluations}
        targets += [target for scores in tables.values() for target in scores["target"].unique()]
        if not tables:
            read_scores(run)  # says what is missing
        known = list(dict.fromkeys(name for scores in tables.values() for name in scores["metric"].unique()))
        if missing := [name for name in metrics or () if name not in known]:
            raise InnerVisionError(f"{run} has no scores of the metric {missing[0]!r}, only of: {', '.join(known)}")
        for name in metrics or SIMILARITY:
            rows[name] |= dict.fromkeys(_targets(tables, name), name)
        if metrics is None:
            tasks = {name: scores for name, scores in tables.items() if name != "similarity"}
            found = [name for scores in tasks.values() for name in scores["metric"].unique()]
            main: dict[str, str] = {}
            for name in in_order(found, METRICS):
                main = dict.fromkeys(_targets(tasks, name), name) | main
            for target, name in main.items():
                of_tasks[target] = list(dict.fromkeys([*of_tasks.get(target, []), name]))
        names = {name for row in rows.values() for name in row.values()} | set(chain(*of_tasks.values()))
        summary = pd.concat(
            [summarize(scores[scores["metric"].isin(names)]) for scores in tables.values() if _has(scores, names)]
        )
        summary = summary[summary["group"].isna()]
        for protocol in _protocols(run, tables):
            if len(curves) == len(COLORS):
                raise InnerVisionError(f"a figure holds {len(COLORS)} lines at most. Plot fewer runs.")
            name = label if protocol == "standard" else f"{label}, {protocol} protocol"
            own = summary[summary["protocol"] == protocol]
            rest = summary[(summary["protocol"] == "standard") & ~summary["metric"].isin(own["metric"])]
            curves.append(Curve(name, COLORS[len(curves)], pd.concat([own, rest])))
    most = max(map(len, of_tasks.values()), default=0)
    below = [{target: names[i] for target, names in of_tasks.items() if i < len(names)} for i in range(most)]
    drawn = [row for row in [*rows.values(), *below] if row]
    return curves, sorted({target for row in drawn for target in row}, key=targets.index), drawn


def _axis_label(metric: str) -> str:
    key, _, model = metric.partition(":")
    return AXIS_LABELS.get(key, metric).replace("{model}", f" ({model})" if model else "")


def _targets(tables: Mapping[str, pd.DataFrame], metric: str) -> list[str]:
    """Name the targets that have scores of a metric."""
    return [target for scores in tables.values() for target in scores[scores["metric"] == metric]["target"].unique()]


def _has(scores: pd.DataFrame, metrics: set[str]) -> bool:
    return bool(scores["metric"].isin(metrics).any())


def _protocols(run: Path, tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Name the protocols to draw: tasks score by several, of which the run's own counts."""
    if "similarity" in tables:
        return sorted(tables["similarity"]["protocol"].unique())
    return [yaml.safe_load((run / "run.yaml").read_text()).get("protocol", "standard")]


def _default_labels(runs: Sequence[Path]) -> list[str]:
    """Name each run by its MLLM, by its folder too where that is not enough, and else by its whole path."""
    for run in runs:
        if not (run / "run.yaml").is_file():
            read_scores(run)  # says what is missing
    mllms = [_mllm(run) for run in runs]
    labels = [
        mllm if mllms.count(mllm) == 1 else f"{mllm} ({run.resolve().name})"
        for mllm, run in zip(mllms, runs, strict=True)
    ]
    return [
        label if labels.count(label) == 1 else f"{mllm} ({run})"
        for label, mllm, run in zip(labels, mllms, runs, strict=True)
    ]


def _mllm(run: Path) -> str:
    """Name a run's MLLM, a folder by its last part, and say where its weights are random."""
    try:
        settings = yaml.safe_load((run / "run.yaml").read_text())
        name = str(settings["mllm"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise InnerVisionError(f"{run / 'run.yaml'} does not name its mllm. Give labels for the runs.") from error
    name = Path(name).name if Path(name).is_absolute() or name.count("/") != 1 else name
    part = {"llm": "random LLM", "all": "random weights"}.get(settings.get("random_weights"))
    return f"{name}, {part}" if part else name


def _draw_panel(panel: Axes, curves: list[Curve], target: str, metric: str, depth: int) -> None:
    for curve in curves:
        _draw_line(panel, curve, target, metric, "shuffled", depth)
        _draw_line(panel, curve, target, metric, "probe", depth)
    for source, (linestyle, _) in LEVELS.items():
        levels = [(curve, value) for curve in curves for value in curve.rows(target, metric, source)["mean"]]
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
    layers, mean, low, high = (rows[name].to_numpy(float) for name in ("layer", "mean", "low", "high"))
    x = _positions(layers, depth)
    style: dict[str, Any] = {"color": curve.color, "label": f"{source}: {curve.label}"}
    if source == "shuffled":
        panel.plot(x, mean, linestyle=":", linewidth=0.9, **style)
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


def _add_legend(figure: Figure, curves: list[Curve]) -> None:
    """Put the legend above the panels, in as few lines as the width allows, and give it room of its own."""
    sources = {source for curve in curves for source in curve.summary["source"]}
    images = {count for curve in curves for count in curve.summary["images"]}
    finite = all(np.isfinite(curve.summary["mean"]).all() for curve in curves)
    entries: list[Artist] = [
        Line2D([], [], color=curve.color, linewidth=1.4, label=textwrap.fill(f"probe of {curve.label}", 46))
        for curve in curves
    ]
    if "shuffled" in sources:
        entries.append(Line2D([], [], color=GREY, linestyle=":", label="another image (shuffled)"))
    entries += [
        Line2D([], [], color=GREY, linestyle=linestyle, label=name)
        for source, (linestyle, name) in LEVELS.items()
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
