"""What every evaluation offers to the one walk through a run's layers (`innervision.engine.evaluate`)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from innervision.config import Protocol, ScoreSettings
from innervision.data.loader import Batch, Truth
from innervision.data.sources import ImageSet
from innervision.metrics.registry import Metric
from innervision.targets.target import Target


class Label(NamedTuple):
    """Which prediction it is, and of which image the truth that it is compared with."""

    image: str
    target: str
    layer: int | None
    """None where the prediction belongs to no layer."""
    source: str
    """probe, shuffled, blank, mean, zero, expert or plain."""


@dataclass(frozen=True)
class Scores:
    """Values of one metric for a list of labels.

    A score of many images is the mean of their values, weighted by `weights`, for each group of its own. Where all
    values stand in groups, it is the mean over the groups. A value of NaN in a group says that the image does not have
    that group; its weight counts nevertheless.
    """

    metric: str
    values: Tensor  # (R,)
    weights: Tensor | None = None  # (R,)
    """None = all the same."""
    groups: Sequence[str] | None = None
    """Of each value the part of the score that it belongs to, such as a class or a type of scene."""
    labels: Sequence[int] | Tensor | None = None
    """Of each value the index of its label; None = one value for each label."""
    protocol: Protocol = "standard"


@dataclass
class Findings:
    """What an evaluation finds for some images."""

    scores: list[tuple[Sequence[Label], Scores]] = field(default_factory=list)
    arrays: dict[tuple[str, str, int | None], dict[str, Tensor]] = field(default_factory=dict)
    """By target, source and layer: arrays (B, …) of the batch's images, kept until all images are done."""

    def add(self, others: "Findings") -> None:
        """Take what was found of the same images for another target."""
        self.scores += others.scores
        self.arrays |= others.arrays

    def on_cpu(self) -> "Findings":
        """Bring all values to the CPU, by which processes send them to each other."""
        labels, scores = zip(*self.scores, strict=True) if self.scores else ((), ())
        arrays = {key: {name: each.cpu() for name, each in found.items()} for key, found in self.arrays.items()}
        return Findings([*zip(labels, to_cpu(scores), strict=True)], arrays)

    def of_layers(self) -> "Findings":
        """Leave out what belongs to no layer."""
        chosen = []
        for labels, scores in self.scores:
            index = [*range(len(scores.values))] if scores.labels is None else [int(each) for each in scores.labels]
            rows = [row for row, label in enumerate(index) if labels[label].layer is not None]
            if not rows:
                continue
            weights = None if scores.weights is None else scores.weights[rows]
            groups = None if scores.groups is None else [scores.groups[row] for row in rows]
            own = [index[row] for row in rows]
            values = scores.values[rows]
            chosen.append((labels, replace(scores, values=values, weights=weights, groups=groups, labels=own)))
        return Findings(chosen, {key: found for key, found in self.arrays.items() if key[2] is not None})


def join_findings(parts: Sequence[Findings]) -> Findings:
    """Join what processes with probes of other layers have found for the same images and targets."""
    joined = Findings()
    for number, part in enumerate(parts):
        joined.add(part.of_layers() if number else part)
    return joined


@dataclass(frozen=True)
class Kept:
    """The arrays of all images. They are read when they are asked for, since together they may not fit in memory."""

    images: list[str]
    keys: list[tuple[str, str, int | None]]
    """Target, source and layer."""
    read: Callable[[tuple[str, str, int | None]], dict[str, NDArray[Any]]]
    """Gives the arrays (images, …) of a key by name."""


class Comparison(ABC):
    """One batch of images and one target, for which predictions come layer by layer."""

    findings: Findings
    """What is found so far."""

    @abstractmethod
    def predicted(self, layer: int, prediction: Tensor) -> None:
        """Take the prediction (B, N, C) of one layer, on any device."""

    @abstractmethod
    def finish(self) -> Findings:
        """Give what was found, once all layers have passed."""


class Evaluation(ABC):
    """Which images are looked at, and what is made of the predictions for them."""

    name: ClassVar[str]
    """Of the command and of the table."""
    head: ClassVar[bool]
    """Whether it needs the experts' heads."""
    weighted: ClassVar[bool]
    """Whether its scores have weights and groups."""
    paired: ClassVar[bool] = True
    """Whether a prediction is scored against its image's partner, too."""
    last_phases: ClassVar[tuple[str, ...]] = ()
    """What takes long once all images were seen, by name: bars tell it beforehand."""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    """Metrics that it brings beside those of `innervision.metrics.registry`."""
    settings: ScoreSettings
    images: ImageSet
    protocol: Protocol = "standard"
    """Of the run that is scored."""
    truth: Truth | None = None
    """Gives what is known of an image; runs in the processes that read the images."""

    @abstractmethod
    def choose(self, kinds: Mapping[str, str]) -> list[str]:
        """Choose from a run's targets those that are scored.

        Args:
            kinds: kind of each target by its name.

        Raises:
            InnerVisionError: there is none.
        """

    def plan(self) -> dict[str, Any]:
        """Say what the scores depend on apart from the run and the images, in values of JSON.

        What has another plan is not mixed.
        """
        return {}

    def prepare(self, targets: Sequence[Target]) -> None:  # noqa: B027  # most take any expert
        """Look at the experts before the work starts.

        Raises:
            InnerVisionError: one of them does not fit what is scored.
        """

    @abstractmethod
    def compare(self, batch: Batch, target: Target, mean: Tensor, blank: Mapping[int, Tensor]) -> Comparison:
        """Begin with a batch and a target: look at what does not depend on the layer.

        Args:
            batch: of images and their partners.
            target: whose features are predicted.
            mean: (N, C), the mean of the target's features over the training images; NaN where it is not known.
            blank: by layer, the prediction (N, C) where the MLLM is shown a plain grey image.
        """

    def conclude(self, kept: Kept) -> Iterator[tuple[Sequence[Label], Scores]]:
        """Score what was kept of the images, once all of them are done."""
        yield from ()

    def facts(self) -> dict[str, Any]:
        """Say what the plan cannot know before the models are loaded; it is written beside the scores."""
        return {}


def to_cpu(scores: Sequence[Scores]) -> list[Scores]:
    """Bring values and weights to the CPU as float64, waiting for the device once."""
    tensors = [tensor for each in scores for tensor in (each.values, each.weights) if tensor is not None]
    sizes = [len(tensor) for tensor in tensors]
    # Converted after the copy, since MPS has no float64; float32 values are exact in float64.
    flat = torch.cat(tensors).cpu().double().split(sizes) if tensors else []
    moved = iter(flat)
    return [replace(each, values=next(moved), weights=None if each.weights is None else next(moved)) for each in scores]
