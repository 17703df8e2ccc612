"""The demo: train, score and draw on images and models that come with the package.

innervision demo --out runs/demo
"""

from pathlib import Path

from innervision.config import EvaluateSettings, ProbeSettings, TrainSettings
from innervision.evaluate import evaluate_similarity
from innervision.report.figures import plot_curves
from innervision.report.tables import format_table, read_scores, summarize
from innervision.run import RunFolder
from innervision.train import fit
from innervision.world.dataset import write_scenes
from innervision.world.random_models import SIZE, save_models

PROBES = {
    "resampler": ("a random LLaVA", ProbeSettings()),
    "positions": ("a random LLaVA, with positions", ProbeSettings(positions=True)),
}
"""The runs of the demo: folder, label in the figure, and probe."""


def run_demo(out: Path) -> None:
    """Show the tool at work from images to curves in a few minutes on two CPU cores, without a download.

    A call that was interrupted goes on where it stopped; what is finished is left as it is.

    Args:
        out: folder of the demo's scenes, models, runs and figure; made if it does not exist.

    Raises:
        InnerVisionError: the folder holds something else, or the disk is full.
    """
    demonstrate(out, train=192, val=48, epochs=2)


def demonstrate(out: Path, train: int, val: int, epochs: int, *, progress: bool = True) -> list[Path]:
    """Run the demo on `train` and `val` scenes, and give the paths of its figure. See `run_demo`."""
    print(
        "The models of this demo are tiny and have random weights: its curves show how the tool works,\n"
        "not what any real model sees.\n",
        flush=True,
    )
    scenes, runs = out / "scenes", out / "runs"
    write_scenes(scenes, train, val, size=SIZE, progress=progress)
    models = save_models(out / "models")
    for name, (label, probe) in PROBES.items():
        print(f"\nprobes of the run {name}: {label}", flush=True)
        settings = TrainSettings(
            mllm=str(models["llava"]),
            targets=",".join(f"{target}={models[target]}" for target in ("depth", "seg", "gen")),
            images=str(scenes / "train2017"),
            out=str(runs / name),
            probe=probe,
            epochs=epochs,
            batch_size=4,
            micro_batch_size=4,
            lr=3e-3,
            device="cpu",  # the same curves everywhere
            workers=0,
        )
        fit(settings, resume=RunFolder(settings.out).yaml.exists(), progress=progress)
        evaluate_similarity(
            settings.out, EvaluateSettings(images=str(scenes / "val2017"), workers=0), progress=progress
        )
    for name in PROBES:
        scores = read_scores(runs / name)
        print(f"\n--- {name} ---\n\n{format_table(summarize(scores), scores['target'].unique())}")
    labels = [label for label, _ in PROBES.values()]
    figure = plot_curves([runs / name for name in PROBES], out / "curves.png", labels=labels)
    print(
        f"""
{figure[0]}  the curves (and {figure[1].name}). Look at how far a probe's line lies above the dotted and the
    dashed one: the score for a wrong image, and of the mean feature, which needs no model.
{scenes}  the images; their README.md says what else is known about them
{out / "models"}  the models
{runs}  a folder for each run: run.yaml holds all settings, scores/ a row per image and layer
next: innervision train --mllm ID --images FOLDER --out RUN, with a real model and real images"""
    )
    return figure
