"""Generation: what does the expert draw from a prediction? Scored against the real images."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from tqdm.auto import tqdm

from innervision.config import VISION, DrawSettings, GenSettings, Protocol
from innervision.data import find_images
from innervision.data.loader import Batch, Truth
from innervision.data.sources import scored_split
from innervision.errors import InnerVisionError, require
from innervision.files import atomic_write
from innervision.metrics.frechet import frechet_by_image, kernel_by_image
from innervision.metrics.similarity import centred_cosine
from innervision.probes import ProbeBank
from innervision.targets.gen import GenTarget
from innervision.targets.target import Target
from innervision.tasks.evaluation import Comparison, Kept, Label, Scores
from innervision.tasks.image_features import InceptionTarget, PooledTarget, Squash, load_image_features
from innervision.tasks.task import Task

Pixels = Callable[[Sequence[Image]], Tensor]
PAPER_SIDE = 256
"""Pixels to which the original resizes all images first."""


class Gen(Task):
    """Distances between the set of drawn images and the set of real ones, and how close each is to its own.

    For every layer, and for the mean and the expert's own embeddings, one image is drawn for each real one. In the
    features of a vision model: Fréchet and kernel distance of the two sets (`fid` and `kid` on Inception; see
    `innervision.metrics.frechet`), and the centred cosine of each drawn image with its real one. The distances do not
    see which image was drawn for which: the predictions for other images, `shuffled`, are the same set, so only the
    cosine has that floor.

    `standard`: images go to the model's own size at once. `paper` (Inception alone): through 256 × 256 pixels of 8
    bits, as the original's PNG files.
    """

    name = "gen"
    target = "gen"
    sources = ("probe", "mean", "expert")
    settings_class = GenSettings
    settings: GenSettings

    def __init__(self, settings: GenSettings) -> None:
        """Find the real images. See `Task`."""
        self.settings = settings
        self.images = find_images(settings.data, scored_split(settings.data))
        require(len(self.images) > 1, f"{settings.data} holds one image; sets are compared, so give more")

    def plan(self) -> dict[str, Any]:
        """Name the features and how images are drawn. See `Evaluation.plan`."""
        settings = asdict(self.settings)
        names = ["features", "save_images", *(field.name for field in fields(DrawSettings))]
        return {name: settings[name] for name in names}

    def prepare(self, targets: Sequence[Target]) -> None:
        """Load the vision model. See `Evaluation.prepare`."""
        [target] = targets
        if not isinstance(target, GenTarget):
            raise InnerVisionError(f"the task gen needs a Stable unCLIP, not {type(target).__name__}")
        head: Any = target.head
        head.check(self.settings)
        target.draw = self.settings
        self.model = load_image_features(self.settings.features, target.device)
        self.views: dict[Protocol, Pixels] = {"standard": self.model.preparer}
        if isinstance(self.model, InceptionTarget):
            self.views["paper"] = Squash(PAPER_SIDE)
        self.known = self._read_known()
        if len(self.images) < self.model.width and os.environ.get("RANK", "0") == "0":
            tqdm.write(
                f"warning: {len(self.images)} images are fewer than the {self.model.width} features: Fréchet distances "
                "come out far too large. Compare them only over the same images; kernel distances are not biased",
                file=sys.stderr,
            )

    @property
    def truth(self) -> Truth:  # type: ignore[override]
        """Gives the real image as the vision model takes it, by protocol, unless its features are known."""
        return partial(_prepare, {} if self.known else self.views)

    def compare(self, batch: Batch, targets: Sequence[Target], banks: Mapping[str, ProbeBank]) -> Comparison:
        """Describe the real images as well. See `Evaluation.compare`."""
        comparison = super().compare(batch, targets, banks)
        if self.known:
            rows = [self.rows[name] for name in batch.names]
            real = {view: torch.from_numpy(array[rows]) for view, array in self.known.items()}
        else:
            real = {view: self._describe(torch.stack([pixels[view] for pixels in batch.truths])) for view in self.views}
        comparison.part.arrays[self.target, "real", None] = real
        return comparison

    def score(self, outputs: Tensor, truths: Sequence[Any]) -> list[Scores]:
        """Give nothing yet: sets are compared when they are whole. See `Task.score`."""
        return []

    def keep(self, outputs: Tensor, labels: Sequence[Label]) -> dict[str, Tensor]:
        """Describe the drawn images (M, 3, H, W), 8 bits as real ones have, and save them. See `Task.keep`."""
        images = [to_pil_image(image) for image in outputs.mul(255).round().byte().cpu()]
        if self.settings.save_images:
            for image, label in zip(images, labels, strict=True):
                _save(image, Path(self.settings.save_images), label)
        return {view: self._describe(prepare(images)) for view, prepare in self.views.items()}

    def conclude(self, kept: Kept) -> Iterator[tuple[Sequence[Label], Scores]]:
        """Compare the sets. See `Evaluation.conclude`."""
        real = kept.read((self.target, "real", None))
        if not self.known and len(kept.images) == len(self.images):
            self._write_known(kept.images, real)
        frechet, kernel, cosine = self._metrics()
        own = real["standard"]
        mean = torch.from_numpy(own.mean(axis=0, keepdims=True))  # (1, d)
        for key in tqdm([key for key in kept.keys if key[1] != "real"], desc="distances", disable=None):
            _, source, layer = key
            labels = [Label(image, self.target, layer, source) for image in kept.images]
            found = kept.read(key)
            for view in self.views:
                yield labels, _scores(frechet, frechet_by_image(found[view], real[view]), view)
            drawn = found["standard"]
            yield labels, _scores(kernel, 1000 * kernel_by_image(drawn, own))
            pairs = {source: drawn} | ({"shuffled": np.roll(drawn, 1, axis=0)} if source == "probe" else {})
            for name, features in pairs.items():
                labels = [Label(image, self.target, layer, name) for image in kept.images]
                closeness = centred_cosine(torch.from_numpy(features)[:, None], torch.from_numpy(own)[:, None], mean)
                yield labels, Scores(cosine, closeness)

    def facts(self) -> dict[str, Any]:
        """Name the vision model, its features and how images are resized for it. See `Evaluation.facts`."""
        return {
            "features": {
                "model": f"{self.model.name} {self.model.expert}",
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
                model = f"{self.model.name}={model}"
        return f"frechet:{model}", f"kernel:{model}", f"image_cosine:{model}"

    def _describe(self, pixels: Tensor) -> Tensor:
        """Give the features (B, d) of prepared pixels (B, 3, h, w)."""
        return self.model.encode(pixels).mean(dim=1)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Of each image the place in the set."""
        return {name: row for row, name in enumerate(self.images.names)}

    def _cache(self) -> Path:
        """Give the file in which the features of the real images are kept for other runs."""
        files = [(str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in self.images.paths]
        model = [self.model.name, self.model.expert, self.model.revision]
        content = [self.images.names, files, model, repr(self.views)]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "innervision" / "features" / f"{digest}.safetensors"

    def _read_known(self) -> dict[str, NDArray[np.float32]]:
        with suppress(OSError, SafetensorError):
            return load_file(self._cache())
        return {}

    def _write_known(self, images: Sequence[str], real: Mapping[str, NDArray[Any]]) -> None:
        order = np.argsort([self.rows[image] for image in images])
        with suppress(OSError, InnerVisionError), atomic_write(self._cache()) as temporary:  # it only saves time
            save_file({view: array[order] for view, array in real.items()}, temporary)


def _prepare(views: Mapping[Protocol, Pixels], name: str, image: Image) -> dict[Protocol, Tensor]:
    return {view: prepare([image])[0] for view, prepare in views.items()}


def _scores(metric: str, values: NDArray[np.float64], protocol: Protocol = "standard") -> Scores:
    return Scores(metric, torch.from_numpy(values), protocol=protocol)


def _save(image: Image, folder: Path, label: Label) -> None:
    """Write FOLDER/LAYER/IMAGE.png, with names that cannot lead out of the folder."""
    layer = label.source if label.layer is None else "vision" if label.layer == VISION else f"layer{label.layer:02}"
    with atomic_write(folder / layer / f"{quote(label.image, safe=' ')}.png") as temporary:
        image.save(temporary)
