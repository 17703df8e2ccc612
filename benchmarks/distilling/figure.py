"""Scores by layer of the models of the study of distilling."""

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from tools.world.distill import LOSSES

from benchmarks.distilling.runs import ALL_RANDOM
from benchmarks.distilling.tables import METRICS, SIMILARITY

COLOURS = {
    "distilled": "#009E73",
    "tuned": "#D55E00",
    "early": "#56B4E9",
    "untrained": "#E69F00",
    ALL_RANDOM: "#777777",
    "without seg": "#CC79A7",
    "without depth": "#0072B2",
    "without gen": "#B8A800",
}
STYLES = {"exact": "-", "trained": (0, (4, 1.5))}
FLOORS = {"mean": "--", "expert": "-."}


def draw(scores: pd.DataFrame) -> Figure:
    """Draw similarity above and tasks, if there are any, below.

    There is a line for each model, seed and kind of probe, and the interval of the first seed.
    """
    panels = [(target, SIMILARITY) for target in LOSSES]
    tasks = [("seg", "miou"), ("depth", "accuracy")] if scores["metric"].nunique() > 1 else []
    size = (10, 5.4) if tasks else (10, 3.6)
    figure, axes = plt.subplots(2 if tasks else 1, 3, figsize=size, sharex=True, squeeze=False)
    if tasks:
        axes[1, 2].axis("off")
    several = scores["probe"].nunique() > 1
    for axis, (target, key) in zip(axes.flat, panels + tasks, strict=False):
        drawn = scores[(scores["target"] == target) & (scores["metric"] == key)]
        axis.axvline(LOSSES[target].layer, color="black", lw=0.8, ls=":", label="where the loss stood")
        lines = drawn[drawn["source"] == "probe"].dropna(subset=["layer"])
        for (model, probe, seed), line in lines.groupby(["model", "probe", "seed"], sort=False):
            x, mean, low, high = line.sort_values("layer")[["layer", "mean", "low", "high"]].to_numpy(float).T
            label = f"{model}, {probe}" if several else model
            axis.plot(x, mean, color=COLOURS[model], lw=1.2, ls=STYLES[probe], label=label)
            if seed == lines["seed"].min():
                axis.fill_between(x, low, high, color=COLOURS[model], alpha=0.12, lw=0)
        for source, style in FLOORS.items():
            if key != SIMILARITY:  # for which they are 0 and 1
                level = drawn[drawn["source"] == source]["mean"].mean()
                axis.axhline(level, color="black", lw=0.8, ls=style, label=f"{source} feature")
        axis.set_title(f"{target}, distilled at layer {LOSSES[target].layer}")
        axis.set_ylabel(METRICS[key])
        axis.set_xticks(range(-1, 9), ["vision", "emb", *map(str, range(1, 9))], rotation=60)
        axis.tick_params(labelbottom=True)
        axis.grid(alpha=0.3)
    found = [axis.get_legend_handles_labels() for axis in axes.flat]
    labels = {text: handle for handles, texts in found for handle, text in zip(handles, texts, strict=True)}
    where: dict[str, Any] = (
        {"loc": "center", "bbox_to_anchor": (0.83, 0.27)} if tasks else {"loc": "lower center", "ncol": len(labels)}
    )
    figure.legend(labels.values(), labels.keys(), frameon=False, **where)
    figure.tight_layout(rect=(0, 0 if tasks else 0.08, 1, 1))
    return figure
