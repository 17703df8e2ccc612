"""Similarity: how close the predicted features are to the expert's."""

from collections.abc import Mapping

from torch import Tensor

from innervision.config import EvaluateSettings, Protocol
from innervision.data import find_images
from innervision.data.loader import Batch
from innervision.metrics.registry import METRICS
from innervision.metrics.similarity import similarity
from innervision.targets.target import Target
from innervision.tasks.evaluation import Comparison, Evaluation, Findings, Label, Scores


class Similarity(Evaluation):
    """Scores the features themselves, of every target. See `innervision.metrics.similarity`."""

    name = "similarity"
    head = False
    weighted = False
    settings: EvaluateSettings

    def __init__(self, settings: EvaluateSettings) -> None:
        """Find the images."""
        self.settings = settings
        self.images = find_images(settings.images)

    def choose(self, kinds: Mapping[str, str]) -> list[str]:
        """Take all targets. See `Evaluation.choose`."""
        return list(kinds)

    def compare(self, batch: Batch, target: Target, mean: Tensor, blank: Mapping[int, Tensor]) -> Comparison:
        """Encode the batch, and score the mean feature. See `Evaluation.compare`."""
        return _Comparison(batch, target, mean, blank, self.protocol)


class _Comparison(Comparison):
    def __init__(
        self, batch: Batch, target: Target, mean: Tensor, blank: Mapping[int, Tensor], protocol: Protocol
    ) -> None:
        self.batch, self.target, self.blank, self.protocol = batch, target.name, blank, protocol
        truth = target.encode(batch.pixels[target.name])  # (B, N, C), and a row for the partner of the last image
        if truth.device.type == "mps":  # which has no float64
            truth = truth.cpu()
        self.truth, self.mean = truth, mean.to(truth.device)
        self.centred = bool(mean.isfinite().all())
        """Whether the mean is known; of imported probes it may not be."""
        self.findings = Findings()
        rows = [*range(len(batch.names))]
        if self.centred:
            self._score(None, "mean", self.mean.expand_as(truth), rows)

    def predicted(self, layer: int, prediction: Tensor) -> None:
        prediction = prediction.to(self.truth.device)
        self._score(layer, "probe", prediction, [*range(len(prediction))])
        if self.batch.partners:
            self._score(layer, "shuffled", prediction, [*self.batch.partners.values()])
        blank = self.blank[layer].to(prediction.device).expand_as(prediction)
        self._score(layer, "blank", blank, [*range(len(prediction))])

    def finish(self) -> Findings:
        return self.findings

    def _score(self, layer: int | None, source: str, prediction: Tensor, rows: list[int]) -> None:
        """Score predictions against the truth of the images in these rows."""
        labels = [Label(self.batch.known[row], self.target, layer, source) for row in rows]
        for metric, values in similarity(prediction[: len(rows)], self.truth[rows], self.mean).items():
            if self.centred or not METRICS[metric].needs_mean:
                # the original has the cosine alone
                protocol = self.protocol if metric == "cosine" else "standard"
                self.findings.scores.append((labels, Scores(metric, values, protocol=protocol)))
