"""Depth: of two points, which is closer? Scored on DA-2K."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from innervision.config import Protocol, TaskSettings
from innervision.data.da2k import PointPairs, read_da2k
from innervision.metrics.pairs import sample, verdicts
from innervision.original.scoring import paper_sample, paper_verdicts
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
    target = "depth"

    def __init__(self, settings: TaskSettings) -> None:
        """Read the pairs. See `Task`."""
        self.settings = settings
        benchmark = read_da2k(settings.data)
        self.images, self.pairs = benchmark.images, benchmark.pairs
        self.annotations = benchmark.fingerprint()

    def plan(self) -> dict[str, Any]:
        """Name the pairs. See `Evaluation.plan`."""
        return {"annotations": self.annotations}

    def truth(self, name: str, image: Image) -> Question:
        """Give the image's pairs. See `Task.truth`."""
        return Question(self.pairs[name], (image.height, image.width))

    def score(self, outputs: Tensor, truths: Sequence[Question]) -> list[Scores]:
        """Score maps (M, H, W). See `Task.score`."""
        count = [len(truth.pairs.closer) for truth in truths]
        closer = np.concatenate([truth.pairs.closer for truth in truths])  # (P,)
        index = torch.repeat_interleave(torch.arange(len(truths)), 2 * torch.tensor(count))  # (2 P,)
        points = torch.from_numpy(np.concatenate([truth.pairs.points.reshape(-1, 2) for truth in truths]))
        sizes = torch.tensor([truth.size for truth in truths])[index]
        values = sample(outputs, *(each.to(outputs.device) for each in (index, points, sizes))).cpu()
        found = verdicts(values.view(-1, 2), torch.from_numpy(closer))
        maps = outputs.cpu().numpy()
        paper = np.concatenate(
            [
                paper_verdicts(
                    paper_sample(depth, truth.pairs.points.reshape(-1, 2), truth.size).reshape(-1, 2),
                    truth.pairs.closer,
                )
                for depth, truth in zip(maps, truths, strict=True)
            ]
        )
        scene_types = [truth.pairs.scene_type for truth in truths]
        weights = torch.tensor(count).double()
        scores: list[Scores] = []

        def share(pairs: Tensor) -> Tensor:
            return torch.stack([part.double().mean() for part in pairs.split(count)])

        right: dict[Protocol, Tensor] = {"standard": share(found.right), "paper": share(torch.from_numpy(paper))}
        for protocol, accuracy in right.items():
            scores.append(Scores("accuracy", accuracy, weights, protocol=protocol))
            if any(scene_types):
                scores.append(Scores("accuracy", accuracy, weights, scene_types, protocol=protocol))
        return [*scores, Scores("ties", share(found.tied), weights)]
