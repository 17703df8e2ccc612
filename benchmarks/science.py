"""What exact and trained probes find in the same layers: the world's MLLMs, over several seeds.

python -m benchmarks.science --out runs/science

Fits probes of several kinds (`PROBES`) over the same scenes to four stages of one model (`STAGES`), for every seed, and
scores them on held-out scenes. Writes OUT/science.csv, OUT/comparisons.csv and OUT/science.png, and prints the
comparisons. It can be stopped; another call resumes it.
"""

import argparse
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.stored import ADDED, Stored, offer_added, train
from innervision import (
    MLLM,
    EvaluateSettings,
    ProbeSettings,
    Target,
    TrainSettings,
    evaluate_similarity,
    fit,
    load_targets,
)
from innervision.config import TaskSettings
from innervision.engine.evaluate import evaluate_task
from innervision.engine.run import RunFolder
from innervision.metrics.registry import find_metric
from innervision.report.files import read_scores
from innervision.report.jackknife import difference, jackknife
from innervision.world.dataset import write_scenes

STAGES: dict[str, tuple[str, Literal["none", "all"]]] = {
    "tuned": ("world/tuned", "none"),
    "early": ("world/early", "none"),
    "untrained": ("world/untrained", "none"),
    "all random": ("world/tuned", "all"),
}
"""Name -> model, and what of it gets fresh weights (a seed of its own for each run's seed)."""
RESAMPLER = ProbeSettings(kind="resampler", positions=True)
ADDED_TO_RIDGE = ProbeSettings(kind=ADDED)
ADDED_FROM_ZERO = ProbeSettings(kind=ADDED, options={"scale": 0.0})
PROBES: dict[str, dict[str, Any]] = {
    "ridge": {},
    "resampler, 12 epochs, 1e-3": {"probe": RESAMPLER, "epochs": 12, "lr": 1e-3, "warmup": 0.1},
    "resampler, 12 epochs, 3e-3": {"probe": RESAMPLER, "epochs": 12, "lr": 3e-3, "warmup": 0.1},
    "ridge + resampler, 12 epochs, 3e-3": {"probe": ADDED_TO_RIDGE, "epochs": 12, "lr": 3e-3, "warmup": 0.1},
    "ridge + resampler from 0, 12 epochs, 1e-3": {"probe": ADDED_FROM_ZERO, "epochs": 12, "lr": 1e-3, "warmup": 0.1},
    "resampler, 4 epochs, 1e-3": {"probe": RESAMPLER, "epochs": 4, "lr": 1e-3, "warmup": 0.1},
    "resampler, 4 epochs, 3e-3, 3% warm-up": {"probe": RESAMPLER, "epochs": 4, "lr": 3e-3},
}
"""Kind of probe -> its settings."""
BASES = list(PROBES)[:3]
"""Kinds that others are compared with."""
RIDGE, *_ = BASES
ON_ALL = BASES[:2]
"""Kinds that are fitted to all stages; the others to the first alone."""
WITH_TASKS = list(PROBES)[:5]
"""Kinds that are scored by tasks, too; the others by similarity alone."""
TASKS = {"depth": "da2k", "seg": "annotations/panoptic_val2017.json"}
"""Target with a task -> its benchmark in the folder of scenes."""
METRICS = {
    "centred_cosine": "centred cosine",
    "explained_variance": "explained variance",
    "accuracy": "pairs ordered right",
    "miou": "mIoU",
}
SOURCES = ("probe", "shuffled", "mean", "expert")
Runs = dict[tuple[str, str, int], list[pd.DataFrame]]
"""Kind of probe, stage and seed -> score tables: of every expert the similarity and, where it has one, the task."""
COLOURS = {"tuned": "#0072B2", "early": "#56B4E9", "untrained": "#E69F00", "all random": "#777777"}


def main() -> None:
    """Train, score, compare and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.science", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/science"))
    parser.add_argument("--targets", default="depth=world/depth,seg=world/seg,gen=world/gen")
    parser.add_argument("--layers", default="0,8")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=512, help="scenes for the probes")
    parser.add_argument("--val", type=int, default=64, help="held-out scenes")
    options = parser.parse_args()

    scenes = options.out / "scenes"
    write_scenes(scenes, options.train, options.val)
    targets = load_targets(options.targets.split(","), device="cpu", head=True)
    runs: Runs = {}
    with offer_added():
        for stage, seed in tqdm([*itertools.product(STAGES, range(options.seeds))], unit="model"):
            for name, tables in probe_stage(stage, seed, targets, scenes, options).items():
                runs[name, stage, seed] = tables
    scores = summarize(runs)
    scores.to_csv(options.out / "science.csv", index=False)
    found = compare(runs)
    found.to_csv(options.out / "comparisons.csv", index=False)
    decoder = found[found["layer"] == "decoder"].drop(columns="layer")
    print(decoder.to_string(index=False, float_format=lambda value: f"{value:+.3f}"))
    draw(scores).savefig(options.out / "science.png", dpi=130)


def probe_stage(
    stage: str, seed: int, targets: list[Target], scenes: Path, options: argparse.Namespace
) -> dict[str, list[pd.DataFrame]]:
    """Fit all kinds of probes to one stage, and give their score tables; what is done already is read."""
    model, fresh = STAGES[stage]
    mllm = MLLM.load(model, random_weights=fresh, seed=seed, device="cpu")

    def settings(name: str) -> TrainSettings:
        # exact probes have no seed: one run stands for all where the model has none either
        varied = name != RIDGE or fresh != "none"
        return TrainSettings(
            mllm=model,
            random_weights=fresh,
            targets=options.targets,
            layers=options.layers,
            images=str(scenes / "train2017"),
            out=str(options.out / re.sub(r"[^\w.-]+", "-", f"{stage} {name} {seed if varied else 0}")),
            batch_size=8,
            seed=seed if varied else 0,
            device="cpu",
            workers=0,
            **PROBES[name],
        )

    ridge = RunFolder(settings(RIDGE).out)
    fit(settings(RIDGE), resume=ridge.yaml.exists(), mllm=mllm, targets=targets, progress=False)
    stored = Stored.of(settings(RIDGE), mllm, targets)
    tables = {}
    for name in PROBES if stage == next(iter(STAGES)) else ON_ALL:
        if name != RIDGE:
            train(stored, settings(name), ridge)
        tasks = TASKS if name in WITH_TASKS else {}
        tables[name] = score(RunFolder(settings(name).out), mllm, targets, scenes, tasks)
    return tables


def score(
    run: RunFolder, mllm: MLLM, targets: list[Target], scenes: Path, tasks: Mapping[str, str]
) -> list[pd.DataFrame]:
    """Give a run's score tables, of `METRICS` and `SOURCES` alone: of the similarity, and of tasks."""
    images = EvaluateSettings(images=str(scenes / "val2017"), device="cpu", workers=0)
    evaluate_similarity(run.path, images, mllm=mllm, targets=targets, progress=False)
    evaluations = ["similarity"]
    for task, folder in tasks.items():
        data = TaskSettings(data=str(scenes / folder), device="cpu", workers=0)
        evaluate_task(run.path, task, data, mllm=mllm, targets=targets, progress=False)
        evaluations.append(task)
    tables = [read_scores(run.path, evaluation) for evaluation in evaluations]
    return [
        table[table["metric"].isin(METRICS) & table["source"].isin(SOURCES) & (table["protocol"] == "standard")]
        for table in tables
    ]


def summarize(runs: Runs) -> pd.DataFrame:
    """Give the scores over all images: one row per probe, stage, seed, target, metric, source and layer."""
    rows = []
    for (probe, stage, seed), tables in runs.items():
        for series in itertools.chain.from_iterable(map(jackknife, tables)):
            scored = series.rows.assign(score=series.score, probe=probe, stage=stage, seed=seed)
            rows.append(scored[scored["group"].isna()])
    columns = ["target", "metric", "source", "layer", "score", "probe", "stage", "seed"]
    return pd.concat(rows, ignore_index=True)[columns]


def compare(runs: Runs) -> pd.DataFrame:
    """Compare each stage with the one below it; and with `BASES` other kinds of probe of the same stage.

    One row per probe, target, metric, layer and comparison. `probe` is the kind of probe of which stages are compared,
    or the stage of which probes are compared. Within a seed both are scored on the same images, so the interval (95%)
    is that of their paired difference. `low` and `high` are the outermost ends over the seeds; `above` and `below`
    count the seeds whose interval lies wholly on that side of 0. The last stage is compared with the mean feature. The
    layer is a number, or "decoder", the average of those from 1 up.
    """
    below = dict(itertools.pairwise([*STAGES, "mean"]))
    compared = []
    for (probe, stage, seed), tables in runs.items():
        if probe in ON_ALL:
            others = runs.get((probe, below[stage], seed)) or [mean_in_every_layer(table) for table in tables]
            compared.append((f"{stage} - {below[stage]}", probe, seed, tables, others))
        for base in BASES:
            if probe not in (RIDGE, base) and (base, stage, seed) in runs:
                compared.append((f"{probe} - {base}", stage, seed, tables, runs[base, stage, seed]))
    parts = []
    for comparison, probe, seed, tables, others in compared:
        for pair in zip(tables, others, strict=False):  # tasks are the last, where there are any
            one, other = (
                {
                    (series.rows["target"].iloc[0], series.rows["metric"].iloc[0]): series
                    for series in jackknife(table[table["source"] == "probe"])
                }
                for table in pair
            )
            for (target, metric), series in one.items():
                found = difference(series, other[target, metric], share=find_metric(metric).share)
                parts.append(found[found["group"].isna()].assign(probe=probe, comparison=comparison, seed=seed))
    found = pd.concat(parts, ignore_index=True).astype({"layer": object}).fillna({"layer": "decoder"})
    found = found.assign(difference=found["mean"], above=found["low"] > 0, below=found["high"] < 0, seeds=1)
    keys = ["probe", "target", "metric", "layer", "comparison"]
    ways = {"difference": "mean", "low": "min", "high": "max", "above": "sum", "below": "sum", "seeds": "sum"}
    return found.groupby(keys, sort=False).agg(ways).reset_index()


def mean_in_every_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Put the score of the mean feature in the place of every layer's prediction."""
    mean = table[table["source"] == "mean"].drop(columns="layer").assign(source="probe")
    return mean.merge(table.loc[table["source"] == "probe", ["layer"]].drop_duplicates(), how="cross")


def draw(scores: pd.DataFrame) -> Figure:
    """Draw scores by layer: a column for each target and metric, a row for each kind of probe; bands span the seeds."""
    drawn = scores[scores["metric"] != "explained_variance"]
    columns = list(drawn[["target", "metric"]].drop_duplicates().itertuples(index=False, name=None))
    layers = sorted(scores["layer"].dropna().unique())
    size = 3.2 * len(columns), 3 * len(ON_ALL)
    figure, axes = plt.subplots(len(ON_ALL), len(columns), figsize=size, sharex=True, sharey="col", squeeze=False)
    for (row, probe), (column, (target, metric)) in itertools.product(enumerate(ON_ALL), enumerate(columns)):
        axis = axes[row, column]
        here = scores[(scores["probe"] == probe) & (scores["target"] == target) & (scores["metric"] == metric)]
        for stage, source in itertools.product(STAGES, ("probe", "shuffled")):
            line = here[(here["stage"] == stage) & (here["source"] == source)].dropna(subset=["layer"])
            seeds = line.pivot_table(index="layer", columns="seed", values="score")
            places, values = np.arange(len(seeds)), seeds.to_numpy()
            style = {"label": stage} if source == "probe" else {"ls": ":"}
            axis.plot(places, values.mean(axis=1), color=COLOURS[stage], **style)
            if source == "probe":
                axis.fill_between(places, values.min(axis=1), values.max(axis=1), color=COLOURS[stage], alpha=0.2, lw=0)
        for source, style in {"mean": "--", "expert": "-."}.items():
            if len(floor := here[here["source"] == source]):
                axis.axhline(floor["score"].mean(), color="black", lw=0.8, ls=style, label=source)
        axis.set_xticks(np.arange(len(layers)), ["vision" if layer == -1 else str(layer) for layer in layers])
        axis.set_title(f"{target}: {METRICS[metric]}" if row == 0 else "")
        axis.set_ylabel(probe if column == 0 else "")
        axis.set_xlabel("layer" if row == len(ON_ALL) - 1 else "")
        axis.grid(alpha=0.3)
    labels = {
        text: handle for axis in axes.flat for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labels.values(), labels.keys(), loc="lower center", ncol=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    return figure


if __name__ == "__main__":
    main()
