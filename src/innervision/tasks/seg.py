"""Segmentation: which class is each pixel of? Scored on COCO's panoptic annotations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor, nn

from innervision.config import TaskSettings
from innervision.data.panoptic import read_panoptic
from innervision.data.sources import scored_split
from innervision.errors import InnerVisionError
from innervision.metrics.segmentation import count_pixels, overlap, predict_classes
from innervision.original.scoring import paper_iou
from innervision.targets.seg import SegTarget
from innervision.targets.target import Maps, Target
from innervision.tasks.evaluation import Scores
from innervision.tasks.task import Task


class Seg(Task):
    """Intersection over union of the classes, and the share of pixels that are right.

    The scores are resized to the annotation's size, and the class of the largest is taken. `standard`: pixels are
    counted over all images (mIoU), void left out. `paper`: as the original, the mean over images of the mean over an
    image's classes, where pixels of void count as wrong. By both, a pixel with a score that is not finite has no class,
    which is wrong.

    Since the other stages of the decoder come from the real image, even a useless prediction scores: hence the floors
    `zero` and `mean`.
    """

    name = "seg"
    kind = "seg"
    sources = ("probe", "shuffled", "blank", "zero", "mean", "expert", "plain")

    def __init__(self, settings: TaskSettings) -> None:
        """Read which maps there are. See `Task`."""
        self.settings = settings
        benchmark = read_panoptic(settings.data, scored_split(settings.data))
        self.images, self.maps, self.categories = benchmark.images, benchmark.maps, benchmark.categories
        self.paths = dict(zip(self.images.names, self.images.paths, strict=True))
        self.annotations = benchmark.fingerprint()
        self.classes: dict[str, list[int]] = {}
        """By target, of each category the expert's class."""

    def plan(self) -> dict[str, Any]:
        """Name the maps. See `Evaluation.plan`."""
        return {**super().plan(), "annotations": self.annotations}

    def prepare(self, targets: Sequence[Target]) -> None:
        """Find each expert's class of each category. See `Evaluation.prepare`.

        Raises:
            InnerVisionError: one of them knows other classes.
        """
        self.classes = {target.name: self._match(target) for target in targets}

    def _match(self, target: Target) -> list[int]:
        if not isinstance(target, SegTarget):
            raise InnerVisionError(f"the task seg needs a OneFormer, not {type(target).__name__}")
        labels = target.labels
        if all(name.isdigit() for name in self.categories):  # an extract without names
            if len(labels) == len(self.categories):
                return list(range(len(labels)))
        elif sorted(labels) == sorted(self.categories):
            return [labels.index(name) for name in self.categories]
        other = [name for name in self.categories if name not in labels] or self.categories
        raise InnerVisionError(
            f"{target.expert} and {self.settings.data} do not have the same classes: {len(labels)} and "
            f"{len(self.categories)}, and the expert lacks {other[0]!r} (its first is {labels[0]!r}). "
            "Use an expert that was trained on these categories"
        )

    def truth(self, name: str, image: Image) -> NDArray[np.uint8]:
        """Read the label map (H, W). See `Task.truth`."""
        return self.maps[name].labels_of(self.paths[name])

    def score(self, outputs: Maps, truths: Sequence[NDArray[np.uint8]], target: Target) -> list[Scores]:
        """Score maps (M, K, h, w), or M maps (K, h, w). See `Task.score`."""
        classes = self.classes[target.name]
        counts = torch.stack(
            [_count(scores[classes], truth) for scores, truth in zip(outputs, truths, strict=True)]
        ).cpu()  # (M, K + 1, K + 1)
        found = [overlap(each) for each in counts]
        union, hits, truth = (
            torch.stack([getattr(each, name) for each in found]).double() for name in ("union", "intersection", "truth")
        )
        rows, columns = union.nonzero(as_tuple=True)
        union_there = union[rows, columns]
        iou = (hits[rows, columns] / union_there).where(truth[rows, columns] > 0, torch.nan)
        known = truth.sum(dim=1)
        paper = torch.tensor([paper_iou(each) for each in counts], dtype=torch.float64)
        labelled = paper.isfinite().nonzero()[:, 0]  # an image that is all void says nothing
        return [
            Scores("miou", iou, union_there, [self.categories[column] for column in columns.tolist()], rows),
            Scores("pixel_accuracy", hits.sum(dim=1) / known.clamp(min=1), known),
            Scores("miou", paper[labelled], labels=labelled, protocol="paper"),
        ]


def _count(scores: Tensor, truth: NDArray[np.uint8]) -> Tensor:
    """Count the pixels of one map (K, h, w) by true and predicted class: (K + 1, K + 1)."""
    resized = nn.functional.interpolate(scores[None], truth.shape, mode="bilinear", align_corners=False)[0]
    return count_pixels(predict_classes(resized), torch.from_numpy(truth).to(scores.device), len(scores))
