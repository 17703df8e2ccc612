"""Do probes tell an MLLM that has learnt to see from one that has not? The world's MLLMs, over several seeds.

python -m benchmarks.science --out runs/science

Trains probes of the same scenes on four stages of one model (`STAGES`), with and without positions, for every seed,
and scores them on held-out scenes. Writes OUT/science.csv, OUT/verdicts.csv and OUT/science.png, and prints the
verdicts. It can be stopped; called again, it goes on.
"""

import argparse
import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from innervision import EvaluateSettings, ProbeSettings, TrainSettings, evaluate_similarity, fit
from innervision.metrics.interval import bootstrap_interval
from innervision.report.tables import read_scores
from innervision.run import RunFolder
from innervision.world.dataset import write_scenes

STAGES = {
    "tuned": ("world/tuned", "none"),
    "early": ("world/early", "none"),
    "untrained": ("world/untrained", "none"),
    "all random": ("world/tuned", "all"),
}
"""Name -> model, and what of it gets fresh weights (a seed of its own for each run's seed)."""
PROBES = {"plain": ProbeSettings(), "positions": ProbeSettings(positions=True)}
METRICS = {"centred_cosine": "centred cosine", "explained_variance": "explained variance"}
"""For both the mean feature scores 0: it is the floor."""
COLOURS = {"tuned": "#0072B2", "early": "#56B4E9", "untrained": "#E69F00", "all random": "#777777"}
RUN = ["probe", "stage", "seed"]


def main() -> None:
    """Train, score, compare and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.science", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/science"))
    parser.add_argument("--targets", default="depth=world/depth,seg=world/seg,gen=world/gen")
    parser.add_argument("--layers", default="vision,0,2,4,6,8")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=384, help="scenes for the probes")
    parser.add_argument("--val", type=int, default=96, help="held-out scenes")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()

    scenes = options.out / "scenes"
    write_scenes(scenes, options.train, options.val)
    tables = []
    runs = list(itertools.product(range(options.seeds), PROBES, STAGES))
    for seed, probe, stage in tqdm(runs, unit="run"):
        model, fresh = STAGES[stage]
        folder = options.out / f"{stage.replace(' ', '-')}-{probe}-{seed}"
        settings = TrainSettings(
            mllm=model,
            random_weights=fresh,  # type: ignore[arg-type]  # str for Literal
            targets=options.targets,
            layers=options.layers,
            images=str(scenes / "train2017"),
            out=str(folder),
            probe=PROBES[probe],
            epochs=options.epochs,
            batch_size=8,
            lr=2e-3,
            seed=seed,
            device="cpu",
            workers=0,
        )
        fit(settings, resume=RunFolder(folder).yaml.exists(), progress=False)
        evaluate_similarity(
            folder, EvaluateSettings(images=str(scenes / "val2017"), device="cpu", workers=0), progress=False
        )
        tables.append(read_scores(folder).assign(probe=probe, stage=stage, seed=seed))
    scores = pd.concat(tables, ignore_index=True)
    scores = scores[scores["metric"].isin(METRICS) & scores["source"].isin(["probe", "shuffled"])]
    curves = scores.groupby([*RUN, "target", "metric", "source", "layer"], observed=True)["value"].mean().reset_index()
    curves.to_csv(options.out / "science.csv", index=False)
    found = verdicts(scores)
    found.to_csv(options.out / "verdicts.csv", index=False)
    print(found.to_string(index=False, float_format=lambda value: f"{value:+.3f}"))
    draw(curves).savefig(options.out / "science.png", dpi=130)


def verdicts(scores: pd.DataFrame) -> pd.DataFrame:
    """Compare each stage with the one below it: one row per probe, target, metric and layers.

    Within a seed both see the same images, so the interval (95%, bootstrap) is that of their paired difference.
    `above` and `below` count the seeds whose interval lies wholly on that side of 0. The last stage is compared
    with the mean feature, which scores 0. `layers` is one layer, or "decoder", the average of those from 1 up.
    """
    own = scores[scores["source"] == "probe"]
    decoder = own[own["layer"] >= 1].assign(layer="decoder")
    rows = []
    keys = ["probe", "target", "metric", "layer"]
    for key, group in pd.concat([own.astype({"layer": object}), decoder]).groupby(keys, observed=True, sort=False):
        values = group.pivot_table(index=["seed", "image"], columns="stage", values="value", observed=True)
        for upper, lower in itertools.pairwise([*STAGES, "the mean"]):
            differences = values[upper] - (values[lower] if lower in STAGES else 0)
            ends = [bootstrap_interval(each.to_numpy()) for _, each in differences.groupby("seed")]
            rows.append(
                dict(zip(["probe", "target", "metric", "layers"], key, strict=True))
                | {
                    "comparison": f"{upper} - {lower}",
                    "difference": differences.mean(),
                    "lowest": min(float(low) for low, _ in ends),
                    "highest": max(float(high) for _, high in ends),
                    "above": sum(bool(low > 0) for low, _ in ends),
                    "below": sum(bool(high < 0) for _, high in ends),
                    "seeds": len(ends),
                }
            )
    return pd.DataFrame(rows)


def draw(curves: pd.DataFrame) -> Figure:
    """Draw centred cosine by layer: targets side by side, a row for each kind of probe; bands span the seeds."""
    curves = curves[curves["metric"] == "centred_cosine"]
    targets = list(dict.fromkeys(curves["target"]))
    figure, axes = plt.subplots(
        len(PROBES), len(targets), figsize=(3.6 * len(targets), 5.6), sharex=True, sharey="col", squeeze=False
    )
    for (row, probe), (column, target) in itertools.product(enumerate(PROBES), enumerate(targets)):
        axis = axes[row, column]
        here = curves[(curves["probe"] == probe) & (curves["target"] == target)]
        for stage in STAGES:
            for source, style in {"probe": "-", "shuffled": ":"}.items():
                line = here[(here["stage"] == stage) & (here["source"] == source)]
                seeds = line.pivot_table(index="layer", columns="seed", values="value", observed=True)
                places, values = np.arange(len(seeds)), seeds.to_numpy()
                named = {"label": stage} if source == "probe" else {}
                axis.plot(places, values.mean(1), style, color=COLOURS[stage], lw=1.6, **named)
                if source == "probe":
                    axis.fill_between(places, values.min(1), values.max(1), color=COLOURS[stage], alpha=0.2, lw=0)
        axis.axhline(0, color="black", lw=0.8, ls="--")
        axis.set_xticks(places, ["vision" if layer == -1 else str(layer) for layer in seeds.index])
        axis.set_title(target if row == 0 else "")
        axis.set_ylabel(f"centred cosine\n({probe} probe)" if column == 0 else "")
        axis.set_xlabel("layer" if row == len(PROBES) - 1 else "")
        axis.grid(alpha=0.3)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(STAGES), frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    return figure


if __name__ == "__main__":
    main()
