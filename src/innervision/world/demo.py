"""The demo: train, score, decode and draw on images and models that come with the package.

innervision demo --out runs/demo
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import redirect_stderr
from functools import cache
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from innervision.config import DrawSettings, EvaluateSettings, GenSettings, TaskSettings, TrainSettings
from innervision.data import read_image
from innervision.engine.decode import decode_layers
from innervision.engine.evaluate import evaluate_similarity, evaluate_task
from innervision.engine.fit import fit
from innervision.engine.run import RunFolder
from innervision.files import atomic_write
from innervision.metrics.registry import find_metric
from innervision.mllm import MLLM
from innervision.report.compare import compare
from innervision.report.figures import curves_figure, write_figure
from innervision.report.files import read_scores
from innervision.report.picture import draw_layers
from innervision.report.tables import layer_name, tabulate, write_summary
from innervision.targets import load_targets
from innervision.targets.gen import GenTarget
from innervision.targets.target import Target
from innervision.world.dataset import write_scenes
from innervision.world.scenes import CATEGORIES, Scene, render

RUNS = ("untrained", "tuned", "distilled")
"""The MLLMs of the package whose layers are read, which are also the names of their runs."""
DISTILLED = {"depth": 4, "seg": 2, "gen": 6}
"""Target -> the layer of `distilled` that learnt to predict it."""
EVALUATIONS = {"similarity": "centred_cosine", "depth": "accuracy", "seg": "miou", "gen": "frechet:world/gen"}
"""Evaluation -> the metric that is printed of it."""
LONGEST_FIRST = ("seg", "depth", "gen", "similarity")
"""The order of evaluations in which processes are done at about the same time."""
TARGETS = ",".join(f"{target}=world/{target}" for target in DISTILLED)
SIZE = 112
DRAW: dict[str, Any] = {"steps": 2, "guidance": 1.0}
"""How images are drawn: quickly."""
HERE: dict[str, Any] = {"device": "cpu", "workers": 0}
"""The same curves everywhere."""


def run_demo(out: Path) -> None:
    """Show the tool at work, from images to curves and a picture, in a few minutes on two CPU cores.

    An interrupted call resumes where it stopped; what is finished is left as it is.

    Args:
        out: folder of the demo's scenes, runs and figures; made if it does not exist.

    Raises:
        InnerVisionError: the folder holds something else, or the disk is full.
    """
    demonstrate(out, train=1500, val=200, workers=min(len(RUNS), torch.get_num_threads()))


def demonstrate(out: Path, train: int, val: int, *, workers: int = 1, progress: bool = True) -> list[Path]:
    """Run the demo on `train` and `val` scenes with `workers` processes, and give the paths of its figures.

    See `run_demo`.
    """
    taught = ", ".join(f"{target} at layer {layer}" for target, layer in DISTILLED.items())
    print(
        f"""\
Tiny MLLMs of eight layers: world/tuned has learnt to describe synthetic scenes; world/distilled as well, and besides to
predict what vision experts see ({taught}); world/untrained is a random
language model behind the same vision tower. Which layers know what? Exact probes tell, fitted to {train:,} scenes.
""",
        flush=True,
    )
    scenes, runs = out / "scenes", [out / "runs" / name for name in RUNS]
    write_scenes(scenes, train, val, size=SIZE, workers=workers, progress=progress)
    notes = out / "notes.txt"
    with tqdm(total=len(RUNS) * (1 + len(EVALUATIONS)), unit="job", disable=not progress) as bar:
        for done in _work_through(out, notes, workers):
            bar.set_postfix_str(done)
            bar.update()
    targets = _targets()
    rows, tables = _summarize(runs)
    with atomic_write(out / "tables.txt") as path:
        path.write_text(tables)
    curves = draw_curves(runs, out / "curves")
    picture = draw_scene(runs, targets, scenes, out / "layers.png", choose_scene(runs))
    print(
        f"""\
{rows}

{curves[0]}  the curves, as {curves[1].name} too. What counts is how far a line lies above the floors (dotted: a
    wrong image; dashed: the mean feature). The vertical lines stand where `distilled` was taught: there it peaks.
{picture}  the scene of median score as each layer shows it
{out / "tables.txt"}  every layer's scores with intervals; {notes.name} has what the runs told
{scenes}  the images; their README.md says what else is known about them
{out / "runs"}  a folder for each run: run.yaml holds all settings, scores/ a row per image and layer
next: innervision train --mllm ID --images FOLDER --out RUN, with a real model and real images"""
    )
    return [*curves, picture]


# --- the work -----------------------------------------------------------------------------------------------


def _work_through(out: Path, notes: Path, workers: int) -> Iterator[str]:
    """Fit and evaluate all runs with `workers` processes (1 = this one), and yield what is done."""
    if workers == 1:
        for name in RUNS:
            for job in ("fit", *EVALUATIONS):
                yield _work(out, notes, name, job)
        return
    # Spawned, not forked: torch has threads running, and a fork may inherit their locks.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        left: set[Future[str]] = {pool.submit(_work, out, notes, name, "fit") for name in RUNS}
        try:
            while left:
                finished, left = wait(left, return_when=FIRST_COMPLETED)
                for done in (future.result() for future in finished):
                    name, job = done.split()
                    if job == "fit":
                        left |= {pool.submit(_work, out, notes, name, evaluation) for evaluation in LONGEST_FIRST}
                    yield done
        finally:
            pool.shutdown(cancel_futures=True)


def _work(out: Path, notes: Path, name: str, job: str) -> str:
    """Fit the probes of a run, or evaluate them, and give what was done; what is told on the way goes to a file."""
    run, scenes = out / "runs" / name, out / "scenes"
    models: dict[str, Any] = {"mllm": _mllm(name), "targets": _targets(), "progress": False}
    with notes.open("a", buffering=1) as file, redirect_stderr(file):
        if job == "fit":
            images = str(scenes / "train2017")
            settings = TrainSettings(
                mllm=f"world/{name}", targets=TARGETS, images=images, out=str(run), micro_batch_size=32, **HERE
            )
            fit(settings, resume=RunFolder(run).yaml.exists(), **models)
        else:
            table = _evaluate(run, scenes, job, models)
            write_summary(tabulate(run, job).summary, table.with_suffix(".csv"))  # tables and figures read it
    return f"{name} {job}"


def _evaluate(run: Path, scenes: Path, evaluation: str, models: dict[str, Any]) -> Path:
    images = str(scenes / "val2017")
    if evaluation == "similarity":
        return evaluate_similarity(run, EvaluateSettings(images=images, **HERE), **models)
    settings = {
        # few at once, so that they stay in the processor's cache
        "depth": TaskSettings(data=str(scenes / "da2k"), decode_batch_size=4, **HERE),
        "seg": TaskSettings(data=str(scenes), **HERE),
        "gen": GenSettings(data=images, features="gen=world/gen", decode_batch_size=32, **DRAW, **HERE),
    }
    return evaluate_task(run, evaluation, settings[evaluation], **models)


@cache
def _targets() -> list[Target]:
    targets = load_targets(TARGETS.split(","), device="cpu", head=True)
    for target in targets:
        target.head.to(memory_format=torch.channels_last)  # a CPU convolves a fifth faster so
    return targets


@cache
def _mllm(name: str) -> MLLM:
    return MLLM.load(f"world/{name}", device="cpu")


# --- what is shown ------------------------------------------------------------------------------------------


def _summarize(runs: Sequence[Path]) -> tuple[str, str]:
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


def draw_scene(runs: Sequence[Path], targets: Sequence[Target], scenes: Path, out: Path, index: int) -> Path:
    """Draw what the runs' layers show of a val scene."""
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
    return {"depth": -np.log(scene.depth), "seg": labels[scene.panoptic], "gen": scene.image / 255}
