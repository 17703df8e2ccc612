"""One panel of curves over layers, and the legend of all: lines, floors, ceilings, intervals, spread of seeds."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from innervision.config import VISION
from innervision.errors import printable
from innervision.metrics.registry import Metric
from innervision.report.tables import holds, layer_name

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""One per run: the palette of Okabe and Ito (2008), made for colour-blind readers, less its pale yellow."""

GREY = "#666666"

FLOORS: dict[str, tuple[Any, str]] = {
    "shuffled": (":", "shuffled: for another image"),
    "blank": ((0, (1, 4)), "blank: for a grey image"),
}
"""Sources that have a score for each layer beside the probe's: their line's style and name."""

LEVELS: dict[str, tuple[Any, str]] = {
    "mean": ("--", "mean feature, without MLLM"),
    "zero": ((0, (6, 1, 1, 1, 1, 1)), "zero feature, without MLLM"),
    "expert": ("-.", "expert: its own features"),
    "plain": ((0, (8, 1)), "plain: the expert as it is"),
}
"""Sources that have one score for all layers: their line's style and name."""

Style = Literal["screen", "paper"]

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
    "svg.fonttype": "none",
}

STYLES: dict[Style, dict[Any, Any]] = {
    "screen": STYLE,
    "paper": {
        **STYLE,
        **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 7),
        **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 6),
        "lines.linewidth": 0.8,
    },
}
"""Of paper the sizes that are left to read where a column of text is as wide as the figure."""


@dataclass
class Curve:
    """One line of each panel."""

    label: str
    color: str
    summary: pd.DataFrame
    """As `summarize` gives it, by one rule for each metric and target, without groups; of several seeds the mean of
    their scores, with the lowest and the highest in the place of an interval."""
    seeds: Sequence[int] = ()
    """Those of several runs that the line stands for."""

    def rows(self, target: str, metric: str, source: str) -> pd.DataFrame:
        """Give the rows by layer; for a source without layers, its one row."""
        wanted = self.summary[["target", "metric", "source"]].eq([target, metric, source]).all(axis=1)
        rows = self.summary[wanted]
        return rows[rows["layer"].notna() == (source not in LEVELS)].sort_values("layer")


def draw_panel(panel: Axes, curves: list[Curve], target: str, metric: Metric, key: str, depth: int) -> None:
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
    names = {layer: layer_name(layer) for layer in sorted(found & {VISION, 0})}
    names |= {layer: str(layer) for layer in range(1, depth + 1) if layer == 1 or layer % every == 0}
    panel.set_xticks(_positions(list(names), depth), list(names.values()))
    for tick in panel.get_xticklabels()[: VISION in names]:  # the upper panels have none
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


def add_legend(figure: Figure, curves: list[Curve], metrics: set[str], grows: bool = True) -> None:
    """Put the legend above the panels, in as few lines as the width allows; the figure grows by it, if it may."""
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
    bands = [f"95% interval over {over}"] if any(not curve.seeds for curve in curves) else []
    bands += ["lowest to highest seed"] if any(curve.seeds for curve in curves) else []
    entries.append(Patch(color=GREY, alpha=0.3, linewidth=0, label=", or ".join(bands)))
    if not finite:
        entries.append(Line2D([], [], color=GREY, marker="x", linestyle="", label="scores that are not finite"))

    for lines in range(1, len(entries) + 1):
        columns = math.ceil(len(entries) / lines)
        legend = figure.legend(handles=entries, loc="outside upper center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= 0.95 * figure.bbox.width:
            if grows:
                figure.set_figheight(figure.get_figheight() + legend.get_window_extent().height / figure.dpi)
            return
        legend.remove()


def plain_text(text: str) -> str:
    """Write a text from a run as matplotlib shows it as it is: `$` begins a formula, which may be wrong."""
    return printable(text).replace("$", r"\$")
