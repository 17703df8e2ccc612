"""The models of the study of distilling, and the runs of their probes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tools.world.build import SCENES
from tools.world.distill import LOSSES, expert_features
from tools.world.train_mllm import ENDS, train
from tools.world.training import load_scenes

from benchmarks import stored
from benchmarks.science import PROBES
from innervision import MLLM, EvaluateSettings, Target, TrainSettings, evaluate_similarity, fit
from innervision.checkpoints.identity import MODELS as SHIPPED
from innervision.config import TaskSettings
from innervision.engine.evaluate import evaluate_task
from innervision.engine.run import RunFolder

ALL_RANDOM = "all random"
LEFT_OUT = {f"without {name}": tuple(other for other in LOSSES if other != name) for name in LOSSES}
"""Model -> the experts that are distilled into it: all but one."""
TRAINED = PROBES["resampler, 12 epochs, 3e-3"] | {"batch_size": 8}


class Studied(NamedTuple):
    """A model and the probes that are fitted to it."""

    model: str
    """`tuned`, `distilled`, `early`, `untrained`, `ALL_RANDOM` or one of `LEFT_OUT`."""
    seed: int = 0
    """Of the training of its last stages; of all weights, where they are random."""
    probe: str = "exact"
    """Or "trained", which needs the exact ones of the same model first."""


@dataclass(frozen=True)
class Study:
    """Where models are grown and probes fitted and scored; what is finished is not done again."""

    out: Path
    """Folder, with the scenes."""
    targets: list[Target]
    layers: str
    """Those that exact probes are fitted to, as `TrainSettings.layers`."""
    trained_layers: str
    """Those of trained probes."""

    def run(self, studied: Studied) -> Path:
        """Give the folder of the run."""
        return self.out / "runs" / f"{studied.model} {studied.seed} {studied.probe}".replace(" ", "-")

    def fit_and_score(self, studied: Studied, *, tasks: bool = True) -> None:
        """Fit probes, and score them by similarity and, if asked, by the tasks of depth and seg."""
        scenes = self.out / "scenes"
        here: dict[str, Any] = {"device": "cpu", "workers": 0}
        model, fresh = self._locate(studied), "all" if studied.model == ALL_RANDOM else "none"
        mllm = MLLM.load(model, random_weights=fresh, seed=studied.seed, device="cpu")
        models: dict[str, Any] = {"mllm": mllm, "targets": self.targets, "progress": False}
        settings = TrainSettings(
            mllm=model,
            random_weights=fresh,
            targets=",".join(f"{target.name}=world/{target.name}" for target in self.targets),
            layers=self.trained_layers if studied.probe == "trained" else self.layers,
            images=str(scenes / "train2017"),
            out=str(self.run(studied)),
            seed=studied.seed if fresh == "all" else 0,
            **here,
            **(TRAINED if studied.probe == "trained" else {}),
        )
        if studied.probe == "trained":
            exact = RunFolder(self.run(studied._replace(probe="exact")))
            stored.train(stored.Stored.of(settings, mllm, self.targets), settings, exact)
        else:
            fit(settings, resume=RunFolder(settings.out).yaml.exists(), **models)

        evaluate_similarity(settings.out, EvaluateSettings(images=str(scenes / "val2017"), **here), **models)
        by_task = {
            "depth": TaskSettings(data=str(scenes / "da2k"), decode_batch_size=4, **here),  # in the processor's cache
            "seg": TaskSettings(data=str(scenes), **here),
        }
        for task, how in by_task.items() if tasks else ():
            evaluate_task(settings.out, task, how, **models)

    def _locate(self, studied: Studied) -> str:
        """Give the name or the folder of the model, which is grown where it has to be."""
        if studied.model == ALL_RANDOM:
            return "world/tuned"
        if studied.seed == 0 and studied.model not in LEFT_OUT:
            return f"world/{studied.model}"
        models, name = self.out / "models", studied.model.replace(" ", "-")
        grown = models / f"seed-{studied.seed}"
        if not (grown / name).is_dir():
            grown.mkdir(parents=True, exist_ok=True)
            lessons = load_scenes(models / ".scenes", "train", SCENES)
            train(
                grown,
                lessons,
                studied.seed,
                features=expert_features(SHIPPED, lessons, models),
                tower=SHIPPED / "untrained/model.safetensors",
                ends={name: (ENDS | LEFT_OUT)[studied.model]},
            )
        return str(grown / name)
