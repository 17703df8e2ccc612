"""What more training images bring to exact probes: explained variance of held-out images over their number."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from innervision.engine.run import RunFolder
from innervision.errors import InnerVisionError
from innervision.probes import read_metadata
from innervision.report.figures import WIDTHS, name_runs
from innervision.report.panels import STYLES, Style, plain_text

COLUMNS = ["target", "layer", "images", "explained_variance"]


def read_sample_sizes(run: str | Path) -> pd.DataFrame:
    """Read what a run's exact probes explain of the images held out, when so many images had been seen.

    Returns:
        Columns `target`, `layer`, `images` and `explained_variance`.

    Raises:
        InnerVisionError: the run is not trained, or its probes are not exact.
    """
    folder = RunFolder(run)
    rows = []
    for target in folder.record().get("experts", {}):
        path = folder.probes(target)
        try:
            held_out = read_metadata(path)["facts"].get("held_out")
            if held_out is None:
                raise InnerVisionError(
                    f"the probes of {target} in {run} do not say how many images they need: only exact probes do"
                )
            rows += [
                (target, int(layer), int(images), float(explained))
                for layer, found in held_out.items()
                for images, explained in zip(found["images"], found["explained_variance"], strict=True)
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InnerVisionError(f"{path} does not say what its probes explain: {error!r}") from error
    return pd.DataFrame(rows, columns=COLUMNS)


def sample_size_figure(
    runs: Sequence[str | Path],
    labels: Sequence[str] | None = None,
    *,
    targets: Sequence[str] | None = None,
    style: Style = "screen",
    size: tuple[float, float] | None = None,
) -> Figure:
    """Draw a row of panels per run, a panel per target and a line per layer, coloured by its depth.

    For the arguments see `innervision.report.figures.draw_curves`.

    Raises:
        InnerVisionError: a run has no exact probes or none for a target, or there are not as many labels as runs.
    """
    tables = [read_sample_sizes(run) for run in runs]
    names = name_runs(runs, labels)
    every = list(dict.fromkeys(target for table in tables for target in table["target"]))
    if unknown := [target for target in targets or () if target not in every]:
        raise InnerVisionError(f"no run has probes for the target {unknown[0]!r}, only for: {', '.join(every)}")
    targets = targets or every
    layers = pd.concat(tables)["layer"]
    depths = Normalize(layers.min(), max(layers.max(), layers.min() + 1))
    colours = matplotlib.colormaps["viridis"]
    with matplotlib.rc_context(STYLES[style]):
        width = WIDTHS[len(targets) > 1] if style == "paper" else max(3.3, 2.25 * len(targets) + 0.6)
        size = size or (width, 1.9 * len(runs) + 0.2)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(runs), len(targets), squeeze=False, sharex=True, sharey=True)
        for row, table, name in zip(panels, tables, names, strict=True):
            for panel, target in zip(row, targets, strict=True):
                for layer, line in table[table["target"] == target].groupby("layer"):
                    looks: dict[str, Any] = {"color": colours(depths(layer)), "marker": "o", "markersize": 2}
                    panel.plot(line["images"], line["explained_variance"], label=str(layer), **looks)
                panel.set_xscale("log", base=2)
                panel.xaxis.set_major_locator(LogLocator(base=2, numticks=6))
                panel.xaxis.set_major_formatter("{x:,.0f}")
                panel.xaxis.set_minor_locator(NullLocator())
                panel.xaxis.set_minor_formatter(NullFormatter())
            row[0].set_ylabel(f"{plain_text(name)}\nexplained variance, held out")
        for panel, target in zip(panels[0], targets, strict=True):
            panel.set_title(plain_text(target))
        for panel in panels[-1]:
            panel.set_xlabel("images seen")
        whole = MaxNLocator(integer=True)
        figure.colorbar(ScalarMappable(depths, colours), ax=panels, label="layer", pad=0.01, ticks=whole)
    return figure
