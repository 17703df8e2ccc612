"""Depth: of two points, which is closer? Scored on DA-2K."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from innervision.config import Protocol, TaskSettings
from innervision.data.da2k import PointPairs, read_da2k
from innervision.data.loader import Batch
from innervision.metrics.pairs import Verdicts, sample, verdicts
from innervision.original.scoring import paper_sample, paper_verdicts
from innervision.targets.target import Context, Maps, Target
from innervision.tasks.evaluation import Comparison, Scores
from innervision.tasks.task import Task


class Question(NamedTuple):
    """Pairs of points, and the name and size of their image."""

    name: str
    pairs: PointPairs
    size: tuple[int, int]  # height, width


class Depth(Task):
    """Accuracy over pairs of points, overall and by scene type, and the share of ties.

    Accuracy is split, too: into the pairs that the map of the mean feature gets right, since the height in the image
    gives many away, and those that it gets wrong.

    The map is stretched to the image's own size, from which it was squashed. `standard`: the float map, and a tie is
    wrong. `paper`: as the original, 8 bits, and a tie counts for the first point.
    """

    name = "depth"
    kind = "depth"

    def __init__(self, settings: TaskSettings) -> None:
        """Read the pairs. See `Task`."""
        self.settings = settings
        self.benchmark = read_da2k(settings.data)
        self.images, self.pairs = self.benchmark.images, self.benchmark.pairs
        self.annotations = self.benchmark.fingerprint()
        self.by_mean: dict[str, dict[str, Tensor]] = {}
        """By target and image of the batch at work: which pairs the mean feature gets right, where it is known."""

    def plan(self) -> dict[str, Any]:
        """Name the pairs. See `Evaluation.plan`."""
        return {**super().plan(), "annotations": self.annotations}

    def truth(self, name: str, image: Image) -> Question:
        """Give the image's pairs. See `Task.truth`."""
        return Question(name, self.pairs[name], (image.height, image.width))

    def compare(self, batch: Batch, target: Target, mean: Tensor, blank: Mapping[int, Tensor]) -> Comparison:
        """See first which pairs the mean feature gets right. See `Evaluation.compare`."""
        self.by_mean[target.name] = {}
        if mean.isfinite().all():
            features = mean[None].to(target.device)
            [depth] = target.decode(features, Context(features))
            verdicts = {truth.name: _judge(depth.cpu(), truth).right for truth in batch.truths}
            self.by_mean[target.name] = verdicts
        return super().compare(batch, target, mean, blank)

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
        scores.append(Scores("ties", _shares([verdicts.tied for verdicts in found]), weights))
        if by_mean := self.by_mean.get(target.name):
            right_by_mean = [by_mean[truth.name] for truth in truths]
            for metric, parts in (
                ("accuracy_mean_right", right_by_mean),
                ("accuracy_mean_wrong", [~part for part in right_by_mean]),
            ):
                rows = [row for row, part in enumerate(parts) if part.any()]
                if rows:
                    of_part = [found[row].right[parts[row]] for row in rows]
                    sizes = torch.tensor([len(each) for each in of_part]).double()
                    scores.append(Scores(metric, _shares(of_part), sizes, labels=rows))
        return scores


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
