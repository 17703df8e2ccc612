"""Pictures that a run keeps: what an expert's head makes of every layer's prediction for a few images.

RUN/pictures/TARGET.json          the images, what each cell of a sheet shows, and what the pictures were made by
RUN/pictures/TARGET/HASH.png      of one image a sheet of equal cells, line by line
RUN/pictures/TARGET/HASH.webp     the photograph, small

HASH is of the image file's content. With these files a report shows pictures without any model.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor, nn

from innervision.checkpoints.identity import fingerprint
from innervision.config import DrawSettings
from innervision.data.content import content_hash
from innervision.data.depth_maps import in_tones_of
from innervision.data.images import BadImage, read_image
from innervision.engine.decode import Decoded, decode_images
from innervision.engine.progress import Phases
from innervision.engine.run import RunFolder
from innervision.engine.session import Session
from innervision.errors import InnerVisionError, require
from innervision.files import atomic_write, locked
from innervision.json_files import read_json
from innervision.metrics.segmentation import predict_classes
from innervision.mllm import MLLM
from innervision.targets.gen import GenTarget
from innervision.targets.seg import SegTarget
from innervision.targets.target import Target
from innervision.tasks.depth import Depth
from innervision.tasks.seg import Seg
from innervision.tasks.task import Task

SIDE = 144
"""Pixels along a side of a cell, at most."""
UNKNOWN = 255
"""The number of pixels without a class, or without a depth."""
PHOTOGRAPH = 320
"""Pixels along the longer side of a photograph, at most."""


LOADING, DRAWING = "loading models", "pictures"
"""Phases of making pictures: of runs, and of images."""


@dataclass(frozen=True)
class Wanted:
    """Images of a task's benchmark that pictures are wanted of."""

    task: Task
    """As it scored the run: its settings decide how images are drawn, and it knows the truth."""
    hashes: Mapping[str, str]
    """By the names of the images the hash of their content when they were scored."""


def keep_pictures(
    path: str | Path,
    wanted: Mapping[str, Wanted],
    *,
    mllm: MLLM | None = None,
    targets: Sequence[Target] | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    phases: Phases | None = None,
) -> None:
    """Make the pictures that a run does not have yet; models are loaded once, and only if there are such.

    Args:
        path: of the run's folder.
        wanted: by the name of the target.
        mllm: instead of the one that the run names.
        targets: instead of those that the run names; with their heads.
        device: by default the accelerator, where there is one.
        trust_remote_code: run model code that comes with the MLLM's checkpoint.
        phases: of the call that this is a part of, `LOADING` and `DRAWING` among them; by default no bar is shown.

    Raises:
        InnerVisionError: an image is not there, cannot be read or is not the one that was scored; the run does not fit
            the models; another process makes its pictures.
    """
    run = RunFolder(path)
    albums = _albums(run, wanted)
    lacking = lacking_pictures(path, wanted)
    if not lacking:
        return
    phases = phases or Phases({}, shown=False)
    with locked(run.path / "pictures" / ".lock"):
        with phases.work(LOADING, 1):
            session = Session.load(
                run.trained_settings(),
                "",
                mllm=mllm,
                targets=targets,
                only=[*lacking],
                head=True,
                device=device,
                trust_remote_code=trust_remote_code,
            )
        with phases.bar(DRAWING, sum(map(len, lacking.values())), "images") as bar:
            for target in session.targets:
                task, album = wanted[target.name].task, albums[target.name]
                if isinstance(target, GenTarget):
                    target = target.drawing(DrawSettings(**_drawing(task)))
                if isinstance(task, Seg):
                    task.prepare([target])
                names = lacking[target.name]
                images = [_read(task, name, wanted[target.name].hashes[name]) for name in names]
                found = decode_images(path, images, mllm=session.mllm, targets=[target])
                for name, image in zip(names, images, strict=True):
                    with phases.work(DRAWING, 1):
                        cells = dict(_cells(next(found)[target.name], target, task, name, image))
                        pairs = _pairs(task.truth(name, image)) if isinstance(task, Depth) else []
                        classes = target.labels if isinstance(target, SegTarget) else []
                        album.add(name, wanted[target.name].hashes[name], image, cells, pairs, classes)
                    bar.update()


def lacking_pictures(path: str | Path, wanted: Mapping[str, Wanted]) -> dict[str, list[str]]:
    """Name by target the images of which a run has no pictures yet; targets of which it has all are left out."""
    albums = _albums(RunFolder(path), wanted)
    lacking = {name: [image for image in each.hashes if image not in albums[name]] for name, each in wanted.items()}
    return {name: images for name, images in lacking.items() if images}


def _albums(run: RunFolder, wanted: Mapping[str, Wanted]) -> dict[str, "_Album"]:
    return {name: _Album(run.path / "pictures", name, run, each.task) for name, each in wanted.items()}


class _Album:
    """The kept pictures of one target. Those of other probes, or drawn otherwise, are not used."""

    def __init__(self, folder: Path, target: str, run: RunFolder, task: Task) -> None:
        self.path, self.folder = folder / f"{target}.json", folder / target
        made = {
            "probes": fingerprint(run.probes(target)),
            "drawing": _drawing(task),
            "side": SIDE,
            "truth": _truth(task),
        }
        try:
            content = read_json(self.path)
        except InnerVisionError:  # there is none yet, or it is broken
            content = None
        kept = content if isinstance(content, dict) and {name: content.get(name) for name in made} == made else {}
        self.content: dict[str, Any] = {**made, "images": {}, **kept}

    def __contains__(self, image: str) -> bool:
        return image in self.content["images"]

    def add(
        self,
        name: str,
        hash: str,
        image: Image,
        cells: Mapping[str, Image],
        pairs: list[list[list[float]]],
        classes: list[str],
    ) -> None:
        """Write the files of an image, and then say that they are there."""
        with atomic_write(self.folder / f"{hash}.png") as temporary:
            _sheet([*cells.values()]).save(temporary, optimize=True)
        small = image.copy()
        small.thumbnail((PHOTOGRAPH, PHOTOGRAPH))
        with atomic_write(self.folder / f"{hash}.webp") as temporary:
            small.save(temporary, quality=75, method=6)
        self.content["images"][name] = {"hash": hash, "cells": [*cells], "pairs": pairs}
        self.content["classes"] = classes
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(self.content, ensure_ascii=False, indent=1), encoding="utf-8")


def _truth(task: Task) -> bool:
    """Tell whether all of an image is known, not pairs of points alone."""
    return isinstance(task, Seg) or (isinstance(task, Depth) and (task.benchmark.folder / "depth").is_dir())


def _drawing(task: Task) -> dict[str, Any]:
    """Give the settings of a task that decide how images are drawn; most have none."""
    settings = asdict(task.settings)
    return {each.name: settings[each.name] for each in fields(DrawSettings) if each.name in settings}


def _read(task: Task, name: str, hash: str) -> Image:
    """Read an image of the benchmark, and see that it is the one that was scored."""
    require(
        name in task.images.names, f"{task.settings.data} does not hold the image {name}, which the run was scored on"
    )
    path = task.images.paths[task.images.names.index(name)]
    require(content_hash(path) == hash, f"{path} is not the image that the run was scored on: its content differs")
    try:
        return read_image(path)
    except BadImage as error:
        raise InnerVisionError(str(error)) from error


def _cells(decoded: Decoded, target: Target, task: Task, name: str, image: Image) -> Iterator[tuple[str, Image]]:
    """Draw what is known of an image, and every output, as `truth`, `expert`, `mean` and the layers' numbers."""
    size = min(SIDE, target.preparer.height), min(SIDE, target.preparer.width)
    if isinstance(task, Seg):
        labels = torch.from_numpy(task.truth(name, image)).long()
        classes = torch.tensor([*task.classes[target.name], *[UNKNOWN] * (256 - len(task.classes[target.name]))])
        yield "truth", _of_labels(nn.functional.interpolate(classes[labels][None, None].float(), size)[0, 0])
    finite = decoded.expert[decoded.expert.isfinite()]
    scale = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if isinstance(task, Depth) and (depth := task.benchmark.depth_map(name)) is not None:
        shown = nn.functional.interpolate(decoded.expert[None, None], depth.shape, mode="bilinear", align_corners=False)
        yield (
            "truth",
            _draw(decoded.kind, torch.from_numpy(in_tones_of(depth, shown[0, 0].numpy())).float(), size, scale),
        )
    outputs = {"expert": decoded.expert, **({} if decoded.mean is None else {"mean": decoded.mean})}
    for title, output in (outputs | {str(layer): each for layer, each in decoded.layers.items()}).items():
        yield title, _draw(decoded.kind, output, size, scale)


def _draw(kind: str, output: Tensor, size: tuple[int, int], scale: tuple[float, float]) -> Image:
    """Draw what a head made: depth (H, W), scores of classes (K, h, w), or an image (3, H, W).

    Depth is drawn on the expert's own scale for the image, so that a flat map looks flat; what lies beyond is cut. What
    is not known is grey.
    """
    if kind == "seg":
        shown = nn.functional.interpolate(output[None], size, mode="bilinear", align_corners=False)[0]
        return _of_labels(predict_classes(shown))
    known = output.isfinite()
    channels = output.nan_to_num()[None] if kind == "gen" else output.where(known, scale[0])[None, None]
    shown = nn.functional.interpolate(channels, size, mode="bilinear", align_corners=False, antialias=True)[0]
    if kind == "gen":
        return PIL.Image.fromarray(shown.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy())
    low, high = scale
    levels = ((shown[0] - low) / (high - low if high > low else 1)).clamp(0, 1).mul(UNKNOWN - 1).round()
    there = nn.functional.interpolate(known[None, None].float(), size)[0, 0] > 0
    colors = np.vstack([matplotlib.colormaps["inferno"](np.linspace(0, 1, UNKNOWN))[:, :3], np.full(3, 0.5)])
    return _indexed(levels.where(there, UNKNOWN).byte().numpy(), colors)


def _of_labels(labels: Tensor) -> Image:
    """Draw classes (H, W) by their numbers."""
    hues = matplotlib.colormaps["hsv"]((np.arange(256) * 0.618034) % 1)[:, :3]
    numbers = labels.where((labels >= 0) & (labels < UNKNOWN), UNKNOWN).byte().numpy()
    return _indexed(numbers, np.vstack([hues[:UNKNOWN], np.ones(3)]))


def _indexed(numbers: NDArray[np.uint8], colors: NDArray[np.floating[Any]]) -> Image:
    """Give an image (H, W) of numbers that a palette (256, 3), 0…1, gives their colours: the numbers stay readable."""
    image = PIL.Image.fromarray(numbers, mode="L")
    image.putpalette((255 * colors).round().astype(np.uint8).tobytes())
    return image


def _sheet(cells: Sequence[Image]) -> Image:
    """Set images of one size beside and below each other, `columns(n)` in a line."""
    width, height = cells[0].size
    across = columns(len(cells))
    sheet = PIL.Image.new(cells[0].mode, (width * across, height * math.ceil(len(cells) / across)))
    if (palette := cells[0].getpalette()) is not None:
        sheet.putpalette(palette)
    for number, cell in enumerate(cells):
        sheet.paste(cell, (number % across * width, number // across * height))
    return sheet


def columns(count: int) -> int:
    """Give how many of so many cells stand in a line of a sheet."""
    return math.ceil(math.sqrt(count))


def _pairs(truth: Any) -> list[list[list[float]]]:
    """Give pairs of points, the closer one first, as [row, column] in shares of the image."""
    size = np.array(truth.size)
    ordered = [
        pair if closer == 1 else pair[::-1] for pair, closer in zip(truth.pairs.points, truth.pairs.closer, strict=True)
    ]
    return [((pair + 0.5) / size).round(4).tolist() for pair in ordered]
