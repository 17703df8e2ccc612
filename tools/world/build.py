"""Makes the models that come with the package again, from nothing.

    python -m tools.world build --out FOLDER

Parts are trained in the order of PARTS, each by the function `train` of its module. A part that is finished
is left as it is; one that was interrupted is trained in a hidden folder, whose models move out when all of
them are done.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from tools.world.training import load_scenes

from innervision.errors import InnerVisionError
from innervision.files import atomic_write, locked


class Part(NamedTuple):
    """A module of this folder that trains models.

    It offers two functions:

        train(out: Path, scenes: Scenes, seed: int, *, effort: float, progress: bool) -> None
            Saves each of the part's models to a folder of its name in `out`. `effort` is the share of the full
            training's steps to do. What an interrupted call left in `out` may be used; what is no model of
            the part is deleted in the end. The models of the parts before stand in the folder above `out`.
        measure(models: Path, *, progress: bool) -> list[tools.world.card.Section]
            Measures the part's models in the folder `models` on held-out scenes.
    """

    module: str
    models: tuple[str, ...]

    def load(self) -> ModuleType:
        return import_module(f"tools.world.{self.module}")


PARTS: dict[str, Part] = {
    "depth": Part("train_depth", ("depth",)),
    "seg": Part("train_seg", ("seg",)),
    "gen": Part("train_gen", ("gen",)),
    "mllm": Part("train_mllm", ("untrained", "early", "tuned", "distilled")),
}
"""Name -> part, in the order of training; a part may use the models of those before it in the same folder."""

SCENES = 12_000
"""Training scenes that all parts share."""


def build(
    out: Path, only: Sequence[str] | None = None, *, seed: int = 0, effort: float = 1.0, progress: bool = True
) -> None:
    """Train the parts (all, or `only` some) and save their models to folders in `out`.

    Args:
        out: folder of the models; the scenes are kept in its subfolder `.scenes` for another call.
        only: names in PARTS.
        seed: of weights and order; the training scenes are those of world 0.
        effort: share of the full training to do, for a try.
        progress: show bars.

    Raises:
        InnerVisionError: there is no such part, or the disk is full.
    """
    names = list(PARTS) if only is None else list(only)
    if unknown := [name for name in names if name not in PARTS]:
        raise InnerVisionError(f"there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    with locked(out / ".lock"):
        for name in [name for name in PARTS if name in names]:
            part = PARTS[name]
            if all((out / model).is_dir() for model in part.models):
                continue
            scenes = load_scenes(out / ".scenes", "train", max(64, round(SCENES * min(1, effort))), progress=progress)
            unfinished = out / f".{name}"
            unfinished.mkdir(exist_ok=True)
            with torch.random.fork_rng(), _clock(unfinished / "cpu_seconds") as seconds:
                torch.manual_seed(seed)
                part.load().train(unfinished, scenes, seed, effort=effort, progress=progress)
            _record(out, part, {"seed": seed, "effort": effort, "cpu_seconds": round(seconds())})
            for model in part.models:
                shutil.rmtree(out / model, ignore_errors=True)
                (unfinished / model).rename(out / model)
            shutil.rmtree(unfinished)


@contextmanager
def _clock(path: Path) -> Iterator[Callable[[], float]]:
    """Count CPU seconds over several calls, in the file `path`."""
    before, start = float(path.read_text(encoding="utf-8")) if path.exists() else 0.0, time.process_time()

    def seconds() -> float:
        return before + time.process_time() - start

    try:
        yield seconds
    finally:
        path.write_text(str(seconds()), encoding="utf-8")


def _record(out: Path, part: Part, facts: dict[str, float]) -> None:
    """Note beside the models how each was made; within their folders it would change their fingerprints."""
    path = out / "build.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    record |= {model: {**facts, "torch": torch.__version__} for model in part.models}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
