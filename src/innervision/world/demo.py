"""The demo: train, score, decode and draw on images and models that come with the package.

innervision demo --out runs/demo
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from innervision.config import DrawSettings, EvaluateSettings, GenSettings, TaskSettings, TrainSettings
from innervision.data import read_image
from innervision.engine.decode import decode_layers
from innervision.engine.evaluate import evaluate_similarity, evaluate_task
from innervision.engine.fit import fit
from innervision.engine.run import RunFolder
from innervision.mllm import MLLM
from innervision.report.figures import plot_curves
from innervision.report.picture import draw_layers
from innervision.report.tables import tabulate
from innervision.targets import load_targets
from innervision.targets.gen import GenTarget
from innervision.targets.target import Target
from innervision.world.dataset import FIRST_INDEX, write_scenes
from innervision.world.scenes import CATEGORIES, Scene, render

RUNS = ("tuned", "untrained")
"""The MLLMs of the package whose layers are read, which are also the names of their runs."""
EVALUATIONS = ("similarity", "depth", "seg", "gen")
TARGETS = "depth=world/depth,seg=world/seg,gen=world/gen"
SIZE = 112
DRAW: dict[str, Any] = {"steps": 5, "guidance": 1.0}
"""How images are drawn: quickly."""


def run_demo(out: Path) -> None:
    """Show the tool at work, from images to curves and a picture, in a few minutes on two CPU cores.

    An interrupted call resumes where it stopped; what is finished is left as it is.

    Args:
        out: folder of the demo's scenes, runs and figures; made if it does not exist.

    Raises:
        InnerVisionError: the folder holds something else, or the disk is full.
    """
    demonstrate(out, train=800, val=56)


def demonstrate(out: Path, train: int, val: int, *, progress: bool = True) -> list[Path]:
    """Run the demo on `train` and `val` scenes, and give the paths of its figures. See `run_demo`."""
    print(
        """\
Tiny models that were trained on synthetic scenes: world/tuned has learnt to describe them, world/untrained is a random
language model behind the same vision tower. On every layer, exact probes predict what three vision experts see: linear
maps from the states at the place of what is predicted, solved in one pass over the scenes.
""",
        flush=True,
    )
    targets = load_targets(TARGETS.split(","), device="cpu", head=True)
    scenes, runs = out / "scenes", [out / "runs" / name for name in RUNS]
    write_scenes(scenes, train, val, size=SIZE, progress=progress)
    images = str(scenes / "val2017")
    here: dict[str, Any] = {"device": "cpu", "workers": 0}  # the same curves everywhere
    tasks = {
        "depth": TaskSettings(data=str(scenes / "da2k"), **here),
        "seg": TaskSettings(data=str(scenes), **here),
        "gen": GenSettings(data=images, features="gen=world/gen", **DRAW, **here),
    }
    for name, run in zip(RUNS, runs, strict=True):
        print(f"\nworld/{name}", flush=True)
        mllm = MLLM.load(f"world/{name}", device="cpu")
        models: dict[str, Any] = {"mllm": mllm, "targets": targets, "progress": progress}
        settings = TrainSettings(
            mllm=f"world/{name}",
            targets=TARGETS,
            images=str(scenes / "train2017"),
            out=str(run),
            **here,
        )
        fit(settings, resume=RunFolder(run).yaml.exists(), **models)
        evaluate_similarity(run, EvaluateSettings(images=images, **here), **models)
        for task, how in tasks.items():
            evaluate_task(run, task, how, **models)
    for name, run in zip(RUNS, runs, strict=True):
        for evaluation in EVALUATIONS:
            print(f"\n--- world/{name}: {evaluation} ---\n\n{tabulate(run, evaluation).text}")
    curves = plot_curves(runs, out / "curves")
    picture = draw_scene(runs, targets, scenes, out / "layers.png", choose_scene(val))
    print(
        f"""
{curves[0]}  the curves (and {curves[1].name}). How far a line lies above the dotted and the dashed one is what
    counts: the score for a wrong image, and of the mean feature, which needs no model.
{picture}  one scene as each layer shows it
{scenes}  the images; their README.md says what else is known about them
{out / "runs"}  a folder for each run: run.yaml holds all settings, scores/ a row per image and layer
next: innervision train --mllm ID --images FOLDER --out RUN, with a real model and real images"""
    )
    return [*curves, picture]


def choose_scene(val: int) -> int:
    """Give the index of the first of the `val` scenes that have the most objects in plain sight."""
    indices = range(FIRST_INDEX["val"], FIRST_INDEX["val"] + val)
    return max(indices, key=lambda index: sum(item.named for item in render(0, index, SIZE).objects))


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
