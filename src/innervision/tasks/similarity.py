"""Similarity: how close the predicted features are to the expert's."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from innervision.config import EvaluateSettings, Protocol
from innervision.data import find_images
from innervision.data.loader import Batch
from innervision.metrics.similarity import similarity
from innervision.probes import ProbeBank
from innervision.targets.target import Target
from innervision.tasks.evaluation import Comparison, Evaluation, Label, Part, Scores

UNCENTRED = ("cosine", "token_cosine")
"""Metrics that need no mean feature."""


class Similarity(Evaluation):
    """Scores the features themselves, of every target. See `innervision.metrics.similarity`."""

    name = "similarity"
    head = False
    weighted = False
    settings: EvaluateSettings

    def __init__(self, settings: EvaluateSettings, protocol: Protocol = "standard") -> None:
        """Find the images; the scores bear the name of the protocol."""
        self.settings = settings
        self.images = find_images(settings.images)
        self.protocol = protocol

    def choose(self, targets: Sequence[str]) -> list[str]:
        """Take all targets. See `Evaluation.choose`."""
        return list(targets)

    def plan(self) -> dict[str, Any]:
        """Add nothing to the images. See `Evaluation.plan`."""
        return {}

    def prepare(self, targets: Sequence[Target]) -> None:
        """Take any expert. See `Evaluation.prepare`."""

    def compare(self, batch: Batch, targets: Sequence[Target], banks: Mapping[str, ProbeBank]) -> Comparison:
        """Encode the batch, and score the mean feature. See `Evaluation.compare`."""
        return _Comparison(batch, targets, banks, self.protocol)


class _Comparison(Comparison):
    def __init__(
        self, batch: Batch, targets: Sequence[Target], banks: Mapping[str, ProbeBank], protocol: Protocol
    ) -> None:
        self.names = batch.names
        self.protocol = protocol
        self.truth = {target.name: target.encode(batch.pixels[target.name]) for target in targets}
        self.means = {name: banks[name].mean for name in self.truth}
        self.centred = {name: bool(mean.isfinite().all()) for name, mean in self.means.items()}
        """Whether the mean is known; of imported probes it may not be."""
        self.part = Part()
        for name, truth in self.truth.items():
            if self.centred[name]:
                self._score(name, None, "mean", self.means[name].expand_as(truth))

    def predicted(self, target: str, layer: int, prediction: Tensor) -> None:
        self._score(target, layer, "probe", prediction)
        if len(self.names) > 1:
            self._score(target, layer, "shuffled", prediction.roll(1, dims=0))

    def finish(self) -> Part:
        return self.part

    def _score(self, target: str, layer: int | None, source: str, prediction: Tensor) -> None:
        tensors = prediction, self.truth[target], self.means[target]
        if prediction.device.type == "mps":  # which has no float64
            tensors = tensors[0].cpu(), tensors[1].cpu(), tensors[2].cpu()
        labels = [Label(image, target, layer, source) for image in self.names]
        self.part.scores.extend(
            (labels, Scores(metric, values, protocol=self.protocol))
            for metric, values in similarity(*tensors).items()
            if self.centred[target] or metric in UNCENTRED
        )
