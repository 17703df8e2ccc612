"""Curves over layers, fit to print: a panel per target and metric, a line per run, intervals, floors and ceilings."""

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from innervision.engine.run import evaluation_of
from innervision.errors import InnerVisionError
from innervision.files import atomic_write
from innervision.metrics.registry import METRICS, Metric, find_metric
from innervision.report.caption import caption
from innervision.report.files import Facts, evaluations_of, read_facts, read_scores, read_settings, run_protocol
from innervision.report.panels import COLORS, STYLE, STYLES, Curve, Style, add_legend, draw_panel, plain_text
from innervision.report.seeds import join_seeds, of_one_setting
from innervision.report.tables import in_order, read_summary

WIDTHS = (3.3, 6.9)
"""Inches of a figure for paper: one column of text, or two."""


class Drawn(NamedTuple):
    """A figure, and what must stand below it."""

    figure: Figure
    caption: str
    """What is drawn, over how many images, with which intervals, seeds and protocol."""


def plot_curves(
    runs: Sequence[str | Path],
    out: str | Path,
    metric: str | Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> list[Path]:
    """Draw `curves_figure` to files, and give their paths. See `write_figure`.

    Raises:
        InnerVisionError: as `draw_curves`, or a file cannot be written.
    """
    return write_figure(curves_figure(runs, metric, labels), out)


def write_figure(figure: Figure, out: str | Path) -> list[Path]:
    """Write a figure in the format that its suffix names (png, pdf, svg …), without one as PNG and PDF.

    PNG has 300 dots per inch.

    Raises:
        InnerVisionError: a file cannot be written.
    """
    out = Path(out)
    if out.is_dir():
        raise InnerVisionError(f"{out} is a folder. Name the figure to write, as in {out / 'curves.png'}")
    known = out.suffix[1:].lower() in figure.canvas.get_supported_filetypes()
    paths = [out] if known else [out.with_name(f"{out.name}.{kind}") for kind in ("png", "pdf")]
    for path in paths:
        with matplotlib.rc_context(STYLE), atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=300)
    return paths


def curves_figure(
    runs: Sequence[str | Path],
    metric: str | Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> Figure:
    """Give the figure of `draw_curves`."""
    return draw_curves(runs, metric, labels).figure


def draw_curves(
    runs: Sequence[str | Path],
    metric: str | Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    *,
    targets: Sequence[str] | None = None,
    name: str | None = None,
    style: Style = "screen",
    size: tuple[float, float] | None = None,
) -> Drawn:
    """Draw scores over layers: a column of panels per target, a row per metric, a line per run.

    Where no metric is named, the main ones of all that the runs have been scored by are drawn: of similarity the
    centred cosine, for which the mean feature scores 0 (the published cosine, where runs of the protocol `paper` or
    without a mean have no other), and below it the main metric of each target's task. Panels of a row that show the
    same metric have the same axis.

    The decoder layers stand at their numbers; the vision tower's output ("vision") and the embeddings that
    enter the decoder ("0") stand apart at their left. Bands and bars are 95% intervals over images; where too few
    images have the classes for the interval of their mean, there is none. Floors
    are the same probe's score for another image (dotted) and a feature that needs no MLLM (dashed); ceilings are the
    expert's own features and the expert as it is. They are grey where they are the same for all runs. A cross at the
    bottom marks a layer whose scores are not all finite.

    Runs that differ by their seed alone become one line, the mean of their scores, with a band from the lowest to the
    highest.

    A run goes by its label, else by its MLLM, and by its folder too where two runs share the MLLM; by its protocol too
    where that is not `standard`. Where all runs are of one other protocol, scores are drawn by its rule; otherwise by
    the standard one, so that all lines of a panel are scored alike. What has no score by that rule is drawn by the
    other.

    Args:
        runs: their folders.
        metric: to draw, one row each.
        labels: of the lines.
        targets: to draw, in this order; by default all.
        name: of the tables, where runs have several of a kind.
        style: paper has the width of one or two columns of text, and letters to match.
        size: width and height in inches; by default as many as the panels need.

    Raises:
        InnerVisionError: a run or its scores are missing, a run has no scores of a metric or target, there are more
            than seven lines, or not as many labels as lines.
    """
    read = [read_run(run, name) for run in runs]
    curves = _make_curves(read, labels)
    asked = [metric] if isinstance(metric, str) else metric
    every = list(dict.fromkeys(target for run in read for target in run.summary["target"]))
    if unknown := [target for target in targets or () if target not in every]:
        raise InnerVisionError(f"no run has scores of the target {unknown[0]!r}, only of: {', '.join(every)}")
    rows = _similarity_rows(read, asked) + ([] if asked else _task_rows(read))
    rows = [{target: row[target] for target in targets or every if target in row} for row in rows]
    rows = [row for row in rows if row]
    if not rows:
        raise InnerVisionError(f"there are no such scores of {', '.join(targets or every)}")
    drawn = [target for target in targets or every if any(target in row for row in rows)]
    with matplotlib.rc_context(STYLES[style]):
        figure = Figure(figsize=size or _size(len(drawn), len(rows), style), layout="constrained")
        _draw_rows(figure, read, curves, rows, drawn)
        add_legend(figure, curves, {key for row in rows for key in row.values()}, grows=size is None)
    return Drawn(figure, caption(curves, rows, lambda key: _metric(read, key), [run.protocol for run in read]))


def _size(columns: int, rows: int, style: Style) -> tuple[float, float]:
    """Give width and height in inches for so many panels."""
    if style == "paper":
        return WIDTHS[columns > 1], 1.45 * rows + 0.3
    return max(3.3, 2.25 * columns), 1.75 * rows + 0.4


def _draw_rows(
    figure: Figure,
    runs: Sequence["ScoredRun"],
    curves: list[Curve],
    rows: Sequence[dict[str, str]],
    targets: Sequence[str],
) -> None:
    """Draw a panel for each row, by target its metric, and each of the targets."""
    depth = max(int(curve.summary["layer"].max()) for curve in curves)
    panels = figure.subplots(len(rows), len(targets), sharex=True, squeeze=False)
    for target, column in zip(targets, panels.T, strict=True):
        column[0].set_title(plain_text(target))
        shown = [(panel, row[target]) for panel, row in zip(column, rows, strict=True) if target in row]
        for panel, key in shown:
            draw_panel(panel, curves, target, _metric(runs, key), key, depth)
        shown[-1][0].set_xlabel("decoder layer")
        shown[-1][0].tick_params(labelbottom=True)
    for row, names in zip(panels, rows, strict=True):
        first = next(target for target in targets if target in names)
        same = len(set(names.values())) == 1
        for target, panel in zip(targets, row, strict=True):
            if target not in names:
                panel.axis("off")
            elif target == first or not same:
                panel.set_ylabel(_axis_label(_metric(runs, names[target]), curves, target, names[target]))
            else:
                panel.sharey(row[targets.index(first)])
                panel.autoscale(axis="y")
                panel.tick_params(labelleft=False)


@dataclass
class ScoredRun:
    """All scores of a run."""

    path: Path
    protocol: str
    summary: pd.DataFrame
    """Of all evaluations, in their order and that of the targets in them, groups included; a column names the
    evaluation."""
    metrics: dict[str, Metric]
    """Those that tasks brought."""
    facts: dict[str, Facts]
    """What is written beside the table of each evaluation."""


def read_run(path: str | Path, name: str | None = None) -> ScoredRun:
    """Read and average all that a run was scored by; `name` is that of its tables, where it has several of a kind.

    Raises:
        InnerVisionError: there is no such run, it has not been evaluated, or a table cannot be read.
    """
    parts: list[pd.DataFrame] = []
    metrics: dict[str, Metric] = {}
    facts = {evaluation: read_facts(path, evaluation) for evaluation in evaluations_of(path, name)}
    for evaluation, known in facts.items():
        scores = read_scores(path, evaluation)
        metrics |= known.metrics
        summary = read_summary(path, evaluation).assign(evaluation=evaluation_of(evaluation))
        parts += [summary[summary["target"] == target] for target in scores["target"].unique()]
    protocol = run_protocol(path, next(iter(facts.values())))
    return ScoredRun(Path(path), protocol, pd.concat(parts, ignore_index=True), metrics, facts)


def scored_alike(runs: Sequence[ScoredRun]) -> list[pd.DataFrame]:
    """Give each run's scores by the rule of the one protocol that all are of, or by the standard one.

    What has no score by that rule is given by the other.
    """
    protocols = {run.protocol for run in runs}
    rule = protocols.pop() if len(protocols) == 1 else "standard"
    alike = []
    for run in runs:
        by_rule = run.summary["protocol"] == rule
        has = by_rule.groupby([run.summary["target"], run.summary["metric"]]).transform("any")
        alike.append(run.summary[by_rule | ~has])
    return alike


def _make_curves(runs: Sequence[ScoredRun], labels: Sequence[str] | None) -> list[Curve]:
    """Give a line for each run, or for the runs of one setting that differ by their seed."""
    groups = of_one_setting([read_settings(run.path) for run in runs])
    scores = scored_alike(runs)
    if len(groups) > len(COLORS):
        raise InnerVisionError(f"a figure holds {len(COLORS)} lines at most. Plot fewer runs.")
    if labels is not None and len(labels) != len(groups):
        why = "" if len(groups) == len(runs) else ": runs that differ by their seed alone are one"
        lines = "1 line" if len(groups) == 1 else f"{len(groups)} lines"
        raise InnerVisionError(f"{len(labels)} labels for {lines}{why}. Give one label per line, or none.")
    names = name_runs([runs[group.members[0]].path for group in groups], labels)
    curves = []
    for group, label, color in zip(groups, names, COLORS, strict=False):
        protocol = runs[group.members[0]].protocol
        name = label if protocol == "standard" else f"{label}, {protocol} protocol"
        name = f"{name}, {len(group.seeds)} seeds" if group.seeds and labels is None else name
        parts = [scores[number][scores[number]["group"].isna()] for number in group.members]
        curves.append(Curve(plain_text(name), color, join_seeds(parts) if group.seeds else parts[0], group.seeds))
    return curves


def _similarity_rows(runs: Sequence[ScoredRun], metrics: Sequence[str] | None) -> list[dict[str, str]]:
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
        known = in_order(summary["metric"], METRICS)
        main = [key for key in known if _metric(runs, key).main]
        metrics = known[:1] if not main or all(run.protocol == "paper" for run in runs) else main
    return [dict.fromkeys(summary[summary["metric"] == key]["target"].unique(), key) for key in metrics]


def _task_rows(runs: Sequence[ScoredRun]) -> list[dict[str, str]]:
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


def _metric(runs: Sequence[ScoredRun], key: str) -> Metric:
    return find_metric(key, {word: metric for run in runs for word, metric in run.metrics.items()})


def _axis_label(metric: Metric, curves: Sequence[Curve], target: str, key: str) -> str:
    """Say what an axis shows, by which rule if it is not the standard one, and which direction is better."""
    drawn = [curve.summary[curve.summary[["target", "metric"]].eq([target, key]).all(axis=1)] for curve in curves]
    rules = sorted({rule for rows in drawn for rule in rows["protocol"]} - {"standard"})
    rule = "".join(f"{rule} rule; " for rule in rules)
    name, better = textwrap.fill(plain_text(metric.name), 20), "higher" if metric.higher_is_better else "lower"
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
