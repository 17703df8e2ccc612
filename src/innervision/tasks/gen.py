"""Generation: what does the expert draw from a prediction? Scored against the real images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from tqdm.auto import tqdm

from innervision.config import VISION, GenSettings, Protocol
from innervision.data import find_images
from innervision.data.loader import Batch
from innervision.data.partners import random_order
from innervision.data.sources import scored_split
from innervision.errors import InnerVisionError, require
from innervision.files import atomic_write
from innervision.metrics.frechet import frechet_by_image, kernel_by_image
from innervision.metrics.similarity import centred_cosine
from innervision.original.inception import PAPER_SQUASH, describe_as_paper
from innervision.targets.gen import GenTarget
from innervision.targets.target import Maps, Target
from innervision.tasks.evaluation import Comparison, Kept, Label, Scores
from innervision.tasks.image_features import InceptionTarget, PooledTarget, load_image_features
from innervision.tasks.known_features import KnownFeatures
from innervision.tasks.task import Task
from innervision.terminal import tell

Pixels = Callable[[Sequence[Image]], Tensor]


class Gen(Task):
    """Distances between the set of drawn images and the set of real ones, and how close each is to its own.

    For every layer, and for the mean and the expert's own embeddings, one image is drawn for each real one. In the
    features of a vision model: Fréchet and kernel distance of the two sets (`fid` and `kid` on Inception; see
    `innervision.metrics.frechet`), and the centred cosine of each drawn image with its real one. The distances do not
    see which image was drawn for which: the predictions for other images, `shuffled`, are the same set, so only the
    cosine has that floor.

    `standard`: images go to the model's own size at once. `paper` (Inception alone): as the original prepares them (see
    `innervision.original.inception`).

    A drawn image that is not finite has features of NaN, and so have the scores that it enters.
    """

    name = "gen"
    kind = "gen"
    last_phases = ("distances",)
    paired = False  # the set of predictions for partners is the set of predictions
    sources = ("probe", "mean", "expert")
    settings_class = GenSettings
    settings: GenSettings

    def __init__(self, settings: GenSettings) -> None:
        """Find the real images. See `Task`."""
        self.settings = settings
        self.images = find_images(settings.data, scored_split(settings.data))
        require(
            min(len(self.images), settings.limit or 2) > 1,
            f"sets of images are compared: {settings.data} must hold, and limit allow, more than one",
        )

    def prepare(self, targets: Sequence[Target]) -> None:
        """Load the vision model. See `Evaluation.prepare`."""
        for target in targets:
            if not isinstance(target, GenTarget):
                raise InnerVisionError(f"the task gen needs a Stable unCLIP, not {type(target).__name__}")
            target.drawing(self.settings).check()
        self.model = load_image_features(self.settings.features, targets[0].device)
        self.views: dict[Protocol, Pixels] = {"standard": self.model.preparer}
        if isinstance(self.model, InceptionTarget):
            self.views["paper"] = PAPER_SQUASH
        model = [self.model.kind, self.model.expert, self.model.revision, repr(self.views)]
        self.known = KnownFeatures(self.images, model)
        self.views_of_truth = {} if self.known else self.views
        if len(self.images) < self.model.width:
            tell(
                f"warning: {len(self.images)} images are fewer than the {self.model.width} features: Fréchet distances "
                "come out far too large. Compare them only over the same images; kernel distances are not biased"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Give the processes that read images what `truth` needs, and no weights."""
        return {"views_of_truth": self.views_of_truth}

    def truth(self, name: str, image: Image) -> dict[Protocol, Tensor]:
        """Give the real image as the vision model takes it, by protocol, unless its features are known."""
        return {view: prepare([image])[0] for view, prepare in self.views_of_truth.items()}

    def compare(self, batch: Batch, target: Target, mean: Tensor, blank: Mapping[int, Tensor]) -> Comparison:
        """Describe the real images as well. See `Evaluation.compare`."""
        if self.known:
            real = {view: torch.from_numpy(array) for view, array in self.known.of(batch.names).items()}
        else:
            shown = {view: torch.stack([pixels[view] for pixels in batch.truths]) for view in self.views}
            real = {view: self._describe(view, pixels) for view, pixels in shown.items()}
        drawing = target.drawing(self.settings) if isinstance(target, GenTarget) else target
        comparison = super().compare(batch, drawing, mean, blank)
        comparison.findings.arrays[target.name, "real", None] = real
        return comparison

    def score(self, outputs: Maps, truths: Sequence[Any], target: Target) -> list[Scores]:
        """Give nothing yet: sets are compared when they are whole. See `Task.score`."""
        return []

    def keep(self, outputs: Maps, labels: Sequence[Label]) -> dict[str, Tensor]:
        """Describe M drawn images (3, H, W), 8 bits as real ones have, and save them. See `Task.keep`."""
        finite = torch.stack([image.isfinite().all() for image in outputs]).cpu()  # (M,)
        images = [to_pil_image(image.nan_to_num().mul(255).round().byte().cpu()) for image in outputs]
        if self.settings.save_images:
            for image, label, whole in zip(images, labels, finite, strict=True):
                if whole:
                    _save(image, Path(self.settings.save_images), label)
        described = {view: self._describe(view, prepare(images)) for view, prepare in self.views.items()}
        return {
            view: features.where(finite[:, None].to(features.device), torch.nan) for view, features in described.items()
        }

    def conclude(self, kept: Kept) -> Iterator[tuple[Sequence[Label], Scores]]:
        """Compare the sets. See `Evaluation.conclude`."""
        real = kept.read(next(key for key in kept.keys if key[1] == "real"))  # the same for all targets
        self.known.keep(kept.images, real)
        order = np.array(random_order(kept.images))
        drawn_for_partner = np.empty_like(order)
        drawn_for_partner[np.roll(order, -1)] = order  # by the place of an image that of the one whose partner it is
        sets = [key for key in kept.keys if key[1] != "real"]
        for key in tqdm(sets, desc="2 of 2: distances", unit=" sets", disable=None):
            target, source, layer = key
            drawn = kept.read(key)
            yield from self._compare_sets([Label(image, target, layer, source) for image in kept.images], drawn, real)
            if source == "probe" and len(order) > 1:
                labels = [Label(image, target, layer, "shuffled") for image in kept.images]
                yield labels, self._closeness(drawn["standard"][drawn_for_partner], real["standard"])

    def _compare_sets(
        self, labels: list[Label], drawn: dict[str, NDArray[Any]], real: dict[str, NDArray[Any]]
    ) -> Iterator[tuple[Sequence[Label], Scores]]:
        frechet, kernel, _ = self._metrics()
        for view in self.views:
            yield labels, Scores(frechet, torch.from_numpy(frechet_by_image(drawn[view], real[view])), protocol=view)
        distance = torch.from_numpy(kernel_by_image(drawn["standard"], real["standard"]))
        yield labels, Scores(kernel, 1000 * distance)
        yield labels, self._closeness(drawn["standard"], real["standard"])

    def _closeness(self, drawn: NDArray[Any], real: NDArray[Any]) -> Scores:
        """Score each drawn image by its real one: arrays (images, d)."""
        mean = torch.from_numpy(real.mean(axis=0, keepdims=True))  # (1, d)
        values = centred_cosine(torch.from_numpy(drawn)[:, None], torch.from_numpy(real)[:, None], mean)
        return Scores(self._metrics()[2], values)

    def facts(self) -> dict[str, Any]:
        """Name the vision model, its features and how images are resized for it. See `Evaluation.facts`."""
        return {
            "features": {
                "model": f"{self.model.kind} {self.model.expert}",
                "revision": self.model.revision,
                "width": self.model.width,
                "images": {view: str(prepare) for view, prepare in self.views.items()},
            }
        }

    def _metrics(self) -> tuple[str, str, str]:
        """Name the metrics; those on other features than Inception's name the model."""
        if isinstance(self.model, InceptionTarget):
            return "fid", "kid", "image_cosine"
        model = self.model.expert
        if not model.startswith("world/"):
            model = model.rpartition("/")[2]
            if not isinstance(self.model, PooledTarget):  # other features of what may be the same model
                model = f"{self.model.kind}={model}"
        return f"frechet:{model}", f"kernel:{model}", f"image_cosine:{model}"

    def _describe(self, view: Protocol, pixels: Tensor) -> Tensor:
        """Give the features (B, d) of prepared pixels (B, 3, h, w)."""
        if view == "paper":
            return describe_as_paper(self.model.module, pixels)
        return self.model.encode(pixels).mean(dim=1)


def _save(image: Image, folder: Path, label: Label) -> None:
    """Write FOLDER/LAYER/IMAGE.png, or FOLDER/TARGET/LAYER/IMAGE.png of a target with a name of its own.

    The names cannot lead out of the folder.
    """
    layer = label.source if label.layer is None else "vision" if label.layer == VISION else f"layer{label.layer:02}"
    folder /= "" if label.target == Gen.kind else label.target
    with atomic_write(folder / layer / f"{quote(label.image, safe=' ')}.png") as temporary:
        image.save(temporary)
