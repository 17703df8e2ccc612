"""What processes that hold an MLLM together do in tests."""

from dataclasses import replace
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from innervision.config import EvaluateSettings, TaskSettings, TrainSettings
from innervision.engine import fit as fit_module
from innervision.engine.evaluate import evaluate_similarity, evaluate_task
from innervision.engine.fit import fit
from innervision.engine.mesh import Mesh
from innervision.engine.processes import join_processes
from innervision.engine.progress import Laps
from innervision.mllm import MLLM


def train_and_score(index: int, settings: TrainSettings, data: str, split: int) -> list[str]:
    """Train on scenes of the world, and score similarity and depth."""
    trained = [*fit(replace(settings, split_mllm=split), progress=False)]
    common: dict[str, Any] = {"split_mllm": split, "batch_size": 3, "workers": 0, "device": "cpu"}
    images = EvaluateSettings(images=f"{data}/val2017", **common)
    evaluate_similarity(settings.out, images, progress=False)
    evaluate_task(settings.out, "depth", TaskSettings(data=f"{data}/da2k", **common), progress=False)
    return trained


def own(tensor: torch.Tensor) -> torch.Tensor:
    """Give this process's share of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def weigh(index: int, settings: TrainSettings) -> int:
    """Give the bytes of probes, moments and optimizer state that a process has after its last step."""
    with join_processes("cpu") as rank:
        plan = fit_module._plan(settings, False, Mesh.of(rank, settings.split_mllm), None, None, False, Laps())
        fit_module._loop(plan, progress=False)
        learner: Any = plan.learner
        held = [tensor for bank in learner.banks.values() for tensor in bank.state_dict().values()]
        if hasattr(learner, "optimizer"):
            held += [each for state in learner.optimizer.state.values() for each in state.values()]
        else:
            held += [each for moments in learner.states.values() for each in moments.buffers()]
        return sum(each.numel() * each.element_size() for each in map(own, held))


def load(index: int, path: str, split: int) -> int:
    """Give the bytes of the weights that this process has."""
    with join_processes("cpu"):
        weights = [*MLLM.load(path, device="cpu", split=split).model.parameters()]
    return sum(each.numel() * each.element_size() for each in map(own, weights))


def read_other_images(index: int) -> str:
    """The second process of a row cannot read an image."""
    with join_processes("cpu") as rank:
        mesh = Mesh.of(rank, 2)
        mesh.require_same_images(["a", "b"])
        mesh.require_same_images(["a", "b"] if index == 0 else ["a"])
    return "same"


def stand(index: int, split: int) -> dict[str, Any]:
    """Say where a process stands, and what sums over its column and its row are."""
    with join_processes("cpu") as rank:
        mesh = Mesh.of(rank, split)
        column, row = torch.tensor([float(index)]), torch.tensor([float(index)])
        mesh.images.sum([column])
        mesh.layers.sum([row])
        return {
            "column": (mesh.images.index, mesh.images.count, float(column)),
            "row": (mesh.layers.index, mesh.layers.count, float(row)),
            "brought": mesh.layers.bring_all(index),
            "own": mesh.own([-1, 0, 1, 2, 3]),
        }
