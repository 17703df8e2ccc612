"""What every task offers: predictions decoded by the expert's own head, scored against what is known of the images."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple
from zlib import crc32

import torch
from PIL.Image import Image
from torch import Tensor

from innervision.config import TaskSettings
from innervision.data.loader import Batch
from innervision.errors import InnerVisionError
from innervision.probes import ProbeBank
from innervision.targets.target import Context, Target
from innervision.tasks.evaluation import Comparison, Evaluation, Label, Part, Scores


class Task(Evaluation):
    """Scores the decoded predictions for one target.

    A subclass opens the benchmark (`__init__`), says what is known of an image (`truth`) and how decoded predictions
    compare with it (`score`).
    """

    target: ClassVar[str]
    """The target whose predictions it decodes."""
    sources: ClassVar[tuple[str, ...]] = ("probe", "shuffled", "mean", "expert", "plain")
    """What is scored:

    | source | what is decoded |
    |---|---|
    | probe | the prediction |
    | shuffled | the prediction for another image of the batch (the one before it, cyclically) |
    | mean | the mean feature of the training images |
    | zero | a feature of zeros |
    | expert | the expert's own features |
    | plain | the expert's own output, made the way it was built for, if it has one |
    """
    head = True
    weighted = True
    settings: TaskSettings

    @abstractmethod
    def __init__(self, settings: TaskSettings) -> None:
        """Open the benchmark and set `settings` and `images`."""

    @abstractmethod
    def truth(self, name: str, image: Image) -> Any:
        """Give what is known of an image; runs on the CPU in the processes that read the images.

        Raises:
            InnerVisionError: it cannot be read, so that the image is left out.
        """

    @abstractmethod
    def score(self, outputs: Tensor, truths: Sequence[Any]) -> list[Scores]:
        """Score decoded outputs (M, …) of `Target.decode`, each against a truth; `Scores.labels` are rows of these."""

    def keep(self, outputs: Tensor, labels: Sequence[Label]) -> dict[str, Tensor]:
        """Give arrays (M, …) of decoded outputs that `conclude` needs of all images together."""
        return {}

    def choose(self, targets: Sequence[str]) -> list[str]:
        """Take the task's own target. See `Evaluation.choose`."""
        if self.target not in targets:
            raise InnerVisionError(f"the run has no probes for {self.target}, only for {', '.join(targets)}")
        return [self.target]

    def plan(self) -> dict[str, Any]:
        """Add nothing to the images, unless a task asks more of them. See `Evaluation.plan`."""
        return {}

    def prepare(self, targets: Sequence[Target]) -> None:
        """Take any expert, unless a task knows better. See `Evaluation.prepare`."""

    def compare(self, batch: Batch, targets: Sequence[Target], banks: Mapping[str, ProbeBank]) -> Comparison:
        """Look at the batch with the expert, and queue what belongs to no layer. See `Evaluation.compare`."""
        [target] = targets
        return _Decoding(self, batch, target, banks[target.name].mean)


class _Map(NamedTuple):
    """A feature map that waits for the head."""

    features: Tensor  # (N, C)
    row: int
    """Of the image in the batch that gives the context."""
    layer: int | None
    against: list[tuple[str, int]]
    """Source, and row of the image whose truth the decoded map is compared with."""


class _Decoding(Comparison):
    """Decodes maps of any images and layers together, as many at once as the settings say, and scores them."""

    def __init__(self, task: Task, batch: Batch, target: Target, mean: Tensor) -> None:
        self.task, self.batch, self.target = task, batch, target
        self.context = target.context(batch.pixels[target.name])
        self.part = Part()
        self.waiting: list[_Map] = []
        self.rows = range(len(batch.names))
        own = self.context.features
        floors = {"zero": torch.zeros_like(own[0])}
        if mean.isfinite().all():  # it is not known of imported probes
            floors["mean"] = mean
        for source in task.sources:
            if source == "expert":
                for row in self.rows:
                    self._queue(_Map(own[row], row, None, [(source, row)]))
            elif source in floors and self._only_features_matter():  # one map for all images
                self._queue(_Map(floors[source], 0, None, [(source, row) for row in self.rows]))
            elif source in floors:
                for row in self.rows:
                    self._queue(_Map(floors[source], row, None, [(source, row)]))
        if "plain" in task.sources and self.context.output is not None:
            self._score(self.context.output, [Label(name, target.name, None, "plain") for name in batch.names])

    def predicted(self, target: str, layer: int, prediction: Tensor) -> None:
        shuffled = "shuffled" in self.task.sources and len(self.rows) > 1
        for row in self.rows:
            against = [("probe", row)]
            next_row = (row + 1) % len(self.rows)
            if shuffled and self._only_features_matter():
                against.append(("shuffled", next_row))
            elif shuffled:
                self._queue(_Map(prediction[row], next_row, layer, [("shuffled", next_row)]))
            self._queue(_Map(prediction[row], row, layer, against))

    def finish(self) -> Part:
        while self.waiting:
            self._decode()
        return self.part

    def _only_features_matter(self) -> bool:
        """Tell whether equal features are decoded to equal outputs, whatever the image."""
        return not self.context.given and not self.target.draws_at_random

    def _queue(self, waiting: _Map) -> None:
        self.waiting.append(waiting)
        if len(self.waiting) >= self.task.settings.decode_batch_size:
            self._decode()

    def _decode(self) -> None:
        size = self.task.settings.decode_batch_size
        maps, self.waiting = self.waiting[:size], self.waiting[size:]
        names = self.batch.names
        # the same for all sources: what differs between them is then not the noise
        seeds = [crc32(f"{names[each.row]} {each.layer}".encode()) for each in maps]
        context: Context = self.context.take([each.row for each in maps])
        outputs = self.target.decode(torch.stack([each.features for each in maps]), context, seeds=seeds)
        index = [i for i, each in enumerate(maps) for _ in each.against]
        labels = [
            Label(names[row], self.target.name, each.layer, source) for each in maps for source, row in each.against
        ]
        self._score(outputs if index == list(range(len(maps))) else outputs[index], labels)

    def _score(self, outputs: Tensor, labels: list[Label]) -> None:
        truth = dict(zip(self.batch.names, self.batch.truths, strict=True))
        scores = self.task.score(outputs, [truth[label.image] for label in labels])
        self.part.scores.extend((labels, each) for each in scores)
        for name, array in self.task.keep(outputs, labels).items():
            for label, values in zip(labels, array, strict=True):
                key = label.target, label.source, label.layer
                shape = (len(self.rows), *values.shape)
                arrays = self.part.arrays.setdefault(key, {})
                arrays.setdefault(name, values.new_empty(shape))[self.batch.names.index(label.image)] = values
