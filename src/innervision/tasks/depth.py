"""Depth: of two points, which is closer? Scored on DA-2K."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from innervision.config import Protocol, TaskSettings
from innervision.data.da2k import PointPairs, read_da2k
from innervision.metrics.pairs import Verdicts, sample, verdicts
from innervision.original.scoring import paper_sample, paper_verdicts
from innervision.targets.target import Maps, Target
from innervision.tasks.evaluation import Scores
from innervision.tasks.task import Task


class Question(NamedTuple):
    """Pairs of points, and the size of their image."""

    pairs: PointPairs
    size: tuple[int, int]  # height, width


class Depth(Task):
    """Accuracy over pairs of points, overall and by scene type, and the share of ties.

    The map is stretched to the image's own size, from which it was squashed. `standard`: the float map, and a tie is
    wrong. `paper`: as the original, 8 bits, and a tie counts for the first point.
    """

    name = "depth"
    kind = "depth"

    def __init__(self, settings: TaskSettings) -> None:
        """Read the pairs. See `Task`."""
        self.settings = settings
        benchmark = read_da2k(settings.data)
        self.images, self.pairs = benchmark.images, benchmark.pairs
        self.annotations = benchmark.fingerprint()

    def plan(self) -> dict[str, Any]:
        """Name the pairs. See `Evaluation.plan`."""
        return {**super().plan(), "annotations": self.annotations}

    def truth(self, name: str, image: Image) -> Question:
        """Give the image's pairs. See `Task.truth`."""
        return Question(self.pairs[name], (image.height, image.width))

    def score(self, outputs: Maps, truths: Sequence[Question], target: Target) -> list[Scores]:
        """Score maps (M, H, W). See `Task.score`."""
        maps = [depth.cpu() for depth in outputs]
        counts = [len(truth.pairs.closer) for truth in truths]
        found = [_judge(depth, truth) for depth, truth in zip(maps, truths, strict=True)]
        paper = [_judge_as_paper(depth, truth) for depth, truth in zip(maps, truths, strict=True)]
        scene_types = [truth.pairs.scene_type for truth in truths]
        weights = torch.tensor(counts).double()
        right: dict[Protocol, Tensor] = {
            "standard": _shares([verdicts.right for verdicts in found]),
            "paper": _shares(paper),
        }
        scores = [
            Scores("accuracy", accuracy, weights, groups, protocol=protocol)
            for protocol, accuracy in right.items()
            for groups in ((None, scene_types) if any(scene_types) else (None,))
        ]
        return [*scores, Scores("ties", _shares([verdicts.tied for verdicts in found]), weights)]


def _judge(depth: Tensor, truth: Question) -> Verdicts:
    """Judge an image's pairs by a map (H, W)."""
    values = sample(depth, torch.from_numpy(truth.pairs.points).reshape(-1, 2), truth.size)
    return verdicts(values.view(-1, 2), torch.from_numpy(truth.pairs.closer))


def _judge_as_paper(depth: Tensor, truth: Question) -> Tensor:
    """Tell which of an image's pairs are right by the original's rule: (P,) bool."""
    values = paper_sample(depth.numpy(), truth.pairs.points.reshape(-1, 2), truth.size)
    return torch.from_numpy(paper_verdicts(values.reshape(-1, 2), truth.pairs.closer))


def _shares(pairs: Sequence[Tensor]) -> Tensor:
    """Give the share of True in each image: (M,) float64."""
    return torch.stack([each.double().mean() for each in pairs])
