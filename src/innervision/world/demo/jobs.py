"""The work of the demo: fits the probes of a run, and evaluates them."""

from contextlib import redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any

import torch

from innervision.config import EvaluateSettings, GenSettings, TaskSettings, TrainSettings
from innervision.engine.evaluate import evaluate_similarity, evaluate_task
from innervision.engine.fit import fit
from innervision.engine.run import RunFolder
from innervision.mllm import MLLM
from innervision.report.tables import read_summary
from innervision.targets import load_targets
from innervision.targets.target import Target
from innervision.world.demo import DISTILLED

TARGETS = ",".join(f"{target}=world/{target}" for target in DISTILLED)
DRAW: dict[str, Any] = {"steps": 1, "guidance": 1.0}
"""How images are drawn: in one step, which gives the mean of all that an embedding leaves open, without details that
the noise invents."""
HERE: dict[str, Any] = {"device": "cpu", "workers": 0}
"""The same curves everywhere."""
BATCH_SIZE = 50
"""Images at once where predictions are scored."""


def work(out: Path, notes: Path, name: str, job: str) -> None:
    """Fit the probes of a run, or evaluate them; what is told on the way goes to the file of notes."""
    run, scenes = out / "runs" / name, out / "scenes"
    models: dict[str, Any] = {"mllm": load_mllm(name), "targets": load_experts(), "progress": False}
    with notes.open("a", buffering=1, encoding="utf-8") as file, redirect_stderr(file):
        if job == "fit":
            images = str(scenes / "train2017")
            settings = TrainSettings(
                mllm=f"world/{name}", targets=TARGETS, images=images, out=str(run), micro_batch_size=32, **HERE
            )
            fit(settings, resume=RunFolder(run).yaml.exists(), **models)
        else:
            _evaluate(run, scenes, job, models)
            read_summary(run, job)  # which writes it, for tables and figures to read


def _evaluate(run: Path, scenes: Path, evaluation: str, models: dict[str, Any]) -> Path:
    images, how = str(scenes / "val2017"), {"batch_size": BATCH_SIZE, **HERE}
    if evaluation == "similarity":
        return evaluate_similarity(run, EvaluateSettings(images=images, **how), **models)
    settings = {
        # few at once, so that they stay in the processor's cache
        "depth": TaskSettings(data=str(scenes / "da2k"), decode_batch_size=4, **how),
        # without the floors that the figures do not show: its head would have to decode each for every image
        "seg": TaskSettings(data=str(scenes), beside="shuffled,mean,expert", decode_batch_size=32, **how),
        "gen": GenSettings(data=images, features="gen=world/gen", decode_batch_size=32, **DRAW, **how),
    }
    return evaluate_task(run, evaluation, settings[evaluation], **models)


@cache
def load_experts() -> list[Target]:
    """Load the experts with their heads, once for each process."""
    targets = load_targets(TARGETS.split(","), device="cpu", head=True)
    for target in targets:
        target.head.to(memory_format=torch.channels_last)  # a CPU convolves a fifth faster so
    return targets


@cache
def load_mllm(name: str) -> MLLM:
    """Load an MLLM of the package, once for each process."""
    return MLLM.load(f"world/{name}", device="cpu")
