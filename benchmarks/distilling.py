"""What distilling experts into an MLLM leaves in its layers, over several trainings.

python -m benchmarks.distilling --out runs/distilling

Fits exact probes to all layers of `tuned` and `distilled`, of every seed of their own training, and scores
them on held-out scenes. Seed 0 are the models of the package; those of further seeds are grown here, behind the
same vision tower, in 15 minutes of one core each. Writes scores.csv, comparisons.csv and distilling.png to OUT, and
prints by how much `distilled` lies above `tuned`. It can be stopped; another call resumes it.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from tools.world.build import SCENES
from tools.world.distill import LOSSES
from tools.world.train_mllm import train
from tools.world.training import load_scenes
from tqdm import tqdm

from innervision import MLLM, EvaluateSettings, Target, TrainSettings, evaluate_similarity, fit, load_targets
from innervision.checkpoints.identity import MODELS as SHIPPED
from innervision.config import TaskSettings
from innervision.engine.evaluate import evaluate_task
from innervision.engine.run import RunFolder
from innervision.report.compare import compare
from innervision.report.files import evaluations_of
from innervision.report.tables import tabulate
from innervision.world.dataset import write_scenes

MODELS = ("distilled", "tuned")
TARGETS = "depth=world/depth,seg=world/seg,gen=world/gen"
METRICS = {
    "centred_cosine": "centred cosine",
    "accuracy": "pairs ordered right",
    "miou": "mIoU",
}
"""Of similarity, and of the tasks depth and seg."""
COLOURS = {"distilled": "#009E73", "tuned": "#D55E00"}


class Studied(NamedTuple):
    """A model, and the run of its probes."""

    name: str
    seed: int
    run: Path


def main() -> None:
    """Grow, fit, score, compare and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distilling", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/distilling"))
    parser.add_argument("--seeds", type=int, default=3, help="trainings of tuned and distilled")
    parser.add_argument("--train", type=int, default=500, help="scenes for the probes")
    parser.add_argument("--val", type=int, default=80, help="held-out scenes")
    options = parser.parse_args()

    scenes = options.out / "scenes"
    write_scenes(scenes, options.train, options.val)
    targets = load_targets(TARGETS.split(","), device="cpu", head=True)
    chosen = [(name, seed) for seed in range(options.seeds) for name in MODELS]
    studied = []
    for name, seed in tqdm(chosen, unit="model"):
        folder = SHIPPED if seed == 0 else grow(options.out, seed)
        run = options.out / "runs" / f"{name}-{seed}"
        fit_and_score(run, str(folder / name), scenes, targets)
        studied.append(Studied(name, seed, run))
    scores = pd.concat(_scores(studied), ignore_index=True)
    scores.to_csv(options.out / "scores.csv", index=False)
    compared = pd.concat(_compare(studied), ignore_index=True)
    compared.to_csv(options.out / "comparisons.csv", index=False)
    print(over_seeds(compared).to_string(index=False, float_format=lambda value: f"{value:+.3f}"))
    draw(scores).savefig(options.out / "distilling.png", dpi=130)


def grow(out: Path, seed: int) -> Path:
    """Give the folder of `tuned` and `distilled` of a seed, which are grown there behind the package's vision tower."""
    models = out / "models" / f"seed-{seed}"
    if not all((models / name).is_dir() for name in MODELS):
        models.mkdir(parents=True, exist_ok=True)
        lessons = load_scenes(out / "models/.scenes", "train", SCENES)
        train(models, lessons, seed, experts=SHIPPED, tower=SHIPPED / "untrained/model.safetensors")
    return models


def fit_and_score(run: Path, model: str, scenes: Path, targets: list[Target]) -> None:
    """Fit exact probes to all layers, and score them by similarity and by the tasks of depth and seg."""
    here: dict[str, Any] = {"device": "cpu", "workers": 0}
    settings = TrainSettings(mllm=model, targets=TARGETS, images=str(scenes / "train2017"), out=str(run), **here)
    models: dict[str, Any] = {"mllm": MLLM.load(model, device="cpu"), "targets": targets, "progress": False}
    images = str(scenes / "val2017")
    tasks = {
        "depth": TaskSettings(data=str(scenes / "da2k"), decode_batch_size=4, **here),  # in the processor's cache
        "seg": TaskSettings(data=str(scenes), **here),
    }
    fit(settings, resume=RunFolder(run).yaml.exists(), **models)
    evaluate_similarity(run, EvaluateSettings(images=images, **here), **models)
    for task, how in tasks.items():
        evaluate_task(run, task, how, **models)


def _scores(studied: list[Studied]) -> Iterator[pd.DataFrame]:
    """Give the scores of every model by layer, of `METRICS` alone."""
    for name, seed, run in studied:
        for evaluation in evaluations_of(run):
            summary = tabulate(run, evaluation).summary
            yield _chosen(summary).assign(model=name, seed=seed)


def _compare(studied: list[Studied]) -> Iterator[pd.DataFrame]:
    """Give `distilled` less `tuned` of each seed, by layer."""
    runs = {(name, seed): run for name, seed, run in studied}
    for seed in sorted({seed for _, seed in runs}):
        yield _chosen(compare(runs["distilled", seed], runs["tuned", seed]).differences).assign(seed=seed)


def _chosen(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["metric"].isin(METRICS) & (rows["protocol"] == "standard") & rows["group"].isna()]


def over_seeds(compared: pd.DataFrame) -> pd.DataFrame:
    """Give a row per target, metric and layer of what `distilled` has above `tuned`, over the seeds.

    `low` and `high` are the outermost ends of the 95% intervals; `above` and `below` count the seeds whose interval
    lies wholly on that side of 0; `loss` marks the layer where the target's loss stood.
    """
    rows = compared[compared["layer"].notna()]
    rows = rows.assign(difference=rows["mean"], above=rows["low"] > 0, below=rows["high"] < 0, seeds=1)
    ways = {"difference": "mean", "low": "min", "high": "max", "above": "sum", "below": "sum", "seeds": "sum"}
    found = rows.groupby(["target", "metric", "layer"], sort=False).agg(ways).reset_index()
    at = found["target"].map({name: loss.layer for name, loss in LOSSES.items()})
    return found.assign(loss=["loss" if here else "" for here in at == found["layer"]])


def draw(scores: pd.DataFrame) -> Figure:
    """Draw scores by layer: similarity above, tasks below; a line per seed, and the interval of seed 0."""
    panels = [(target, "centred_cosine") for target in LOSSES] + [("seg", "miou"), ("depth", "accuracy")]
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.4), sharex=True)
    axes[1, 2].axis("off")
    for axis, (target, key) in zip(axes.flat, panels, strict=False):
        drawn = scores[(scores["target"] == target) & (scores["metric"] == key)]
        axis.axvline(LOSSES[target].layer, color="black", lw=0.8, ls=":", label="where the loss stood")
        for name, colour in COLOURS.items():
            lines = drawn[(drawn["model"] == name) & (drawn["source"] == "probe")].dropna(subset=["layer"])
            for seed, line in lines.groupby("seed"):
                x, mean, low, high = line.sort_values("layer")[["layer", "mean", "low", "high"]].to_numpy(float).T
                axis.plot(x, mean, color=colour, lw=1.2, label=name)
                if seed == 0:
                    axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        for source, style in {"mean": "--", "expert": "-."}.items():
            level = drawn[drawn["source"] == source]["mean"]
            if key != "centred_cosine":  # for which they are 0 and 1
                axis.axhline(level.mean(), color="black", lw=0.8, ls=style, label=f"{source} feature")
        axis.set_title(f"{target}, distilled at layer {LOSSES[target].layer}")
        axis.set_ylabel(METRICS[key])
        axis.set_xticks(range(-1, 9), ["vision", "emb", *map(str, range(1, 9))], rotation=60)
        axis.tick_params(labelbottom=True)
        axis.grid(alpha=0.3)
    found = [axis.get_legend_handles_labels() for axis in axes.flat]
    labels = {text: handle for handles, texts in found for handle, text in zip(handles, texts, strict=True)}
    figure.legend(labels.values(), labels.keys(), loc="center", bbox_to_anchor=(0.83, 0.27), frameon=False)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main()
