"""What every task offers: predictions decoded by the expert's own head, scored against what is known of the images."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, ClassVar, NamedTuple
from zlib import crc32

import torch
from PIL.Image import Image
from torch import Tensor

from innervision.config import TaskSettings, split_names
from innervision.data.loader import Batch
from innervision.errors import InnerVisionError
from innervision.targets.target import Maps, Target, take_rows
from innervision.tasks.evaluation import Comparison, Evaluation, Findings, Label, Scores


class Task(Evaluation):
    """Scores the decoded predictions for one target.

    A subclass opens the benchmark (`__init__`), says what is known of an image (`truth`) and how decoded predictions
    compare with it (`score`).
    """

    kind: ClassVar[str]
    """Of the targets whose predictions it decodes."""
    settings_class: ClassVar[type[TaskSettings]] = TaskSettings
    """Its settings; the command line has an option for each field."""
    sources: ClassVar[tuple[str, ...]] = ("probe", "shuffled", "blank", "mean", "expert", "plain")
    """What is scored:

    | source | what is decoded |
    |---|---|
    | probe | the prediction |
    | shuffled | the prediction for another image, drawn at random (see `innervision.data.partners`) |
    | blank | the prediction where the MLLM is shown a plain grey image |
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

    def plan(self) -> dict[str, Any]:
        """Name the task's own settings, all of which may change its scores. See `Evaluation.plan`."""
        common = {field.name for field in fields(TaskSettings)}
        own = {name: value for name, value in asdict(self.settings).items() if name not in common}
        return own if self.settings.beside == "all" else {**own, "sources": self.chosen_sources}

    @property
    def chosen_sources(self) -> list[str]:
        """Those of `sources` that the settings ask for.

        Raises:
            InnerVisionError: the task has no such source.
        """
        if self.settings.beside == "all":
            return [*self.sources]
        asked = {*split_names(self.settings.beside)} - {"none"}
        known = [source for source in self.sources if source != "probe"]
        if unknown := sorted(asked - {*known}):
            raise InnerVisionError(
                f"beside={self.settings.beside!r}: {self.name} has no {unknown[0]!r}, only {', '.join(known)}"
            )
        return ["probe", *(source for source in known if source in asked)]

    @abstractmethod
    def truth(self, name: str, image: Image) -> Any:
        """Give what is known of an image; runs on the CPU in the processes that read the images.

        Raises:
            InnerVisionError: it cannot be read, so that the image is left out.
        """

    @abstractmethod
    def score(self, outputs: Maps, truths: Sequence[Any], target: Target) -> list[Scores]:
        """Score M outputs of `Target.decode`, each against a truth; `Scores.labels` are rows of these."""

    def keep(self, outputs: Maps, labels: Sequence[Label]) -> dict[str, Tensor]:
        """Give arrays (M, …) of decoded outputs that `conclude` needs of all images together."""
        return {}

    def choose(self, kinds: Mapping[str, str]) -> list[str]:
        """Take all targets of the task's kind. See `Evaluation.choose`."""
        names = [name for name, kind in kinds.items() if kind == self.kind]
        if not names:
            raise InnerVisionError(f"the run has no probes for {self.kind}, only for {', '.join(kinds)}")
        return names

    def compare(self, batch: Batch, target: Target, mean: Tensor, blank: Mapping[int, Tensor]) -> Comparison:
        """Look at the batch with the expert, and queue what belongs to no layer. See `Evaluation.compare`."""
        return _Decoding(self, batch, target, mean, blank)


class _Waiting(NamedTuple):
    """A feature map that waits for the head."""

    features: Tensor  # (N, C)
    row: int
    """Of the image in the batch that gives the context."""
    layer: int | None
    against: list[tuple[str, int]]
    """Source, and row of the image whose truth the decoded map is compared with."""


class _Decoding(Comparison):
    """Decodes maps of any images and layers together, as many at once as the settings say, and scores them."""

    def __init__(self, task: Task, batch: Batch, target: Target, mean: Tensor, blank: Mapping[int, Tensor]) -> None:
        self.task, self.batch, self.target, self.blank = task, batch, target, blank
        self.sources = task.chosen_sources
        self.context = target.context(batch.pixels[target.name])
        self.findings = Findings()
        self.waiting: list[_Waiting] = []
        self.rows = range(len(batch.names))
        own = self.context.features
        floors = {"zero": torch.zeros_like(own[0])}
        if mean.isfinite().all():  # it is not known of imported probes
            floors["mean"] = mean.to(own.device)
        for source in self.sources:
            if source == "expert":
                for row in self.rows:
                    self._queue(_Waiting(own[row], row, None, [(source, row)]))
            elif source in floors:
                self._queue_for_all(floors[source], None, source)
        if "plain" in self.sources and self.context.output is not None:
            self._score(self.context.output[: len(self.rows)], [self._label(row, None, "plain") for row in self.rows])

    def predicted(self, layer: int, prediction: Tensor) -> None:
        prediction = prediction.to(self.context.features.device)
        partners = self.batch.partners if "shuffled" in self.sources else {}
        for row in self.rows:
            against = [("probe", row)]
            if row in partners and self._only_features_matter():
                against.append(("shuffled", partners[row]))
            elif row in partners:
                self._queue(_Waiting(prediction[row], partners[row], layer, [("shuffled", partners[row])]))
            self._queue(_Waiting(prediction[row], row, layer, against))
        if "blank" in self.sources:
            self._queue_for_all(self.blank[layer].to(prediction.device), layer, "blank")

    def finish(self) -> Findings:
        while self.waiting:
            self._decode()
        return self.findings

    def _only_features_matter(self) -> bool:
        """Tell whether equal features are decoded to equal outputs, whatever the image."""
        return not self.context.given and not self.target.draws_at_random

    def _label(self, row: int, layer: int | None, source: str) -> Label:
        return Label(self.batch.known[row], self.target.name, layer, source)

    def _queue_for_all(self, features: Tensor, layer: int | None, source: str) -> None:
        """Queue features (N, C) that all images share: once, where equal features have equal outputs."""
        if self._only_features_matter():
            self._queue(_Waiting(features, 0, layer, [(source, row) for row in self.rows]))
        else:
            for row in self.rows:
                self._queue(_Waiting(features, row, layer, [(source, row)]))

    def _queue(self, waiting: _Waiting) -> None:
        self.waiting.append(waiting)
        if len(self.waiting) >= self.task.settings.decode_batch_size:
            self._decode()

    def _decode(self) -> None:
        size = self.task.settings.decode_batch_size
        maps, self.waiting = self.waiting[:size], self.waiting[size:]
        # the same for all sources: what differs between them is then not the noise
        seeds = [crc32(f"{self.batch.known[each.row]} {each.layer}".encode()) for each in maps]
        context = self.context.take([each.row for each in maps])
        outputs = self.target.decode(torch.stack([each.features for each in maps]), context, seeds=seeds)
        index = [i for i, each in enumerate(maps) for _ in each.against]
        labels = [self._label(row, each.layer, source) for each in maps for source, row in each.against]
        self._score(outputs if index == [*range(len(maps))] else take_rows(outputs, index), labels)

    def _score(self, outputs: Maps, labels: list[Label]) -> None:
        truth = dict(zip(self.batch.known, self.batch.truths, strict=True))
        scores = self.task.score(outputs, [truth[label.image] for label in labels], self.target)
        self.findings.scores.extend((labels, each) for each in scores)
        for name, array in self.task.keep(outputs, labels).items():
            for label, values in zip(labels, array, strict=True):
                if label.source == "shuffled":  # the same set in another order
                    continue
                key = label.target, label.source, label.layer
                shape = (len(self.rows), *values.shape)
                arrays = self.findings.arrays.setdefault(key, {})
                arrays.setdefault(name, values.new_empty(shape))[self.batch.names.index(label.image)] = values
