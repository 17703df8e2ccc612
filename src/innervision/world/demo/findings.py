"""What the demo shows: rows for the terminal, tables, curves, and the picture of a scene."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from innervision.config import DrawSettings
from innervision.data import read_image
from innervision.engine.decode import decode_layers
from innervision.metrics.registry import find_metric
from innervision.report.compare import compare
from innervision.report.figures import curves_figure, write_figure
from innervision.report.files import read_scores
from innervision.report.picture import draw_layers
from innervision.report.tables import layer_name, tabulate
from innervision.targets.gen import GenTarget
from innervision.world.demo import DISTILLED, EVALUATIONS, RUNS, SIZE
from innervision.world.demo.jobs import DRAW, load_experts
from innervision.world.scenes import CATEGORIES, Scene, render


def summarize(runs: Sequence[Path]) -> tuple[str, str]:
    """Give a row for each target and run, and the tables of all layers."""
    tables = {(run.name, evaluation): tabulate(run, evaluation) for run in runs for evaluation in EVALUATIONS}
    gains = compare(runs[RUNS.index("distilled")], runs[RUNS.index("tuned")]).differences
    key = EVALUATIONS["similarity"]
    lines: list[str] = []
    for target, taught in DISTILLED.items():
        task = find_metric(EVALUATIONS[target].partition(":")[0])
        score_head = f"{task.name} there [95%]{'' if task.higher_is_better else ', lower is better'}"
        head = f"{target:<12} {'best':<7} {'centred cosine [95%]':<22} {score_head:<45}"
        lines += ["", f"{head} {'mean feature':>12} {'expert':>8}"]
        for run in runs:
            similar = _by_layer(tables[run.name, "similarity"].summary, target, key, "probe")
            best = max((layer for layer in similar if layer is not None), key=lambda layer: similar[layer].mean)
            scores = {
                source: _by_layer(tables[run.name, target].summary, target, EVALUATIONS[target], source)
                for source in ("probe", "mean", "expert")
            }
            cosine, score = (
                _with_interval(similar[best], key),
                _with_interval(scores["probe"][best], EVALUATIONS[target]),
            )
            floor, ceiling = (task.format(scores[source][None].mean) for source in ("mean", "expert"))
            lines.append(f"{run.name:<12} {layer_name(best):<7} {cosine:<22} {score:<45} {floor:>12} {ceiling:>8}")
        gain = _with_interval(_by_layer(gains, target, key, "probe")[taught], key)
        lines.append(f"  look at layer {taught}, which learnt {target}: distilled - tuned = {gain} in centred cosine")
    texts = (f"--- world/{name}: {evaluation} ---\n\n{table.text}\n" for (name, evaluation), table in tables.items())
    return "\n".join(lines[1:]), "\n".join(texts)


def _by_layer(rows: pd.DataFrame, target: str, metric: str, source: str) -> dict[int | None, Any]:
    """Give the scores of all images by the standard rule; what has no layer stands under None."""
    wanted = rows[["target", "metric", "source", "protocol"]].eq([target, metric, source, "standard"]).all(axis=1)
    chosen = rows[wanted & rows["group"].isna()]
    layers = [None if pd.isna(layer) else int(layer) for layer in chosen["layer"]]
    return dict(zip(layers, chosen.itertuples(index=False), strict=True))


def _with_interval(row: Any, metric: str) -> str:
    mean, low, high = map(find_metric(metric).format, (row.mean, row.low, row.high))
    return f"{mean} [{low}, {high}]"


def draw_curves(runs: Sequence[Path], out: Path) -> list[Path]:
    """Draw the curves of all runs, with a line where `distilled` was taught the target of the column."""
    figure = curves_figure(runs)
    for panel, (target, layer) in zip(figure.axes, cycle(DISTILLED.items()), strict=False):
        panel.axvline(layer, color="black", linewidth=0.6, alpha=0.6)
        if panel.get_title():
            panel.title.set_text(f"{target} (distilled at layer {layer})")  # set_title would change its size
    return write_figure(figure, out)


def choose_scene(runs: Sequence[Path]) -> int:
    """Give the index of the scene of median similarity, over all runs, targets and layers together."""
    tables = pd.concat([read_scores(run, "similarity") for run in runs])
    probes = tables[(tables["metric"] == EVALUATIONS["similarity"]) & (tables["source"] == "probe")]
    ranked = (
        probes.assign(image=probes["image"].astype(str)).groupby("image")["value"].mean().sort_values(kind="stable")
    )
    return int(Path(ranked.index[(len(ranked) - 1) // 2]).stem)


def draw_scene(runs: Sequence[Path], scenes: Path, out: Path) -> Path:
    """Draw what the runs' layers show of the scene that `choose_scene` gives."""
    index, targets = choose_scene(runs), load_experts()
    image = read_image(scenes / f"val2017/{index:012d}.jpg")
    for target in targets:
        if isinstance(target, GenTarget):
            target.draw = DrawSettings(**DRAW)
    decoded = {run.name: decode_layers(run, image, targets=targets) for run in runs}
    classes = [(category["name"], category["color"]) for category in CATEGORIES]
    draw_layers(decoded, truth_of(render(0, index, SIZE)), out, classes)
    return out


def truth_of(scene: Scene) -> dict[str, NDArray[Any]]:
    """Give what is known of a scene in the form of the experts' outputs. See `draw_layers`."""
    labels = np.zeros(256, np.uint8)
    for segment in scene.segments:
        labels[segment.id] = [category["id"] for category in CATEGORIES].index(segment.category_id)
    return {"depth": scene.depth, "seg": labels[scene.panoptic], "gen": scene.image / 255}
