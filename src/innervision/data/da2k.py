"""DA-2K: pairs of points in images, of which one is known to be closer (Yang et al., 2024, arXiv:2406.09414).

FOLDER/annotations.json            {"images/indoor/a.jpg": [{"point1": [row, column], "point2": …,
FOLDER/images/indoor/a.jpg                                   "closer_point": "point1"}, …], …}
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from innervision.data.images import BadImage, image_size
from innervision.data.sources import ImageSet, check_inside, images_inside, read_json, short_hash
from innervision.errors import InnerVisionError


@dataclass(frozen=True)
class PointPairs:
    """The pairs of one image."""

    scene_type: str
    """Name of the folder below `images`, such as indoor; empty where there is none."""
    points: NDArray[np.int64]  # (P, 2, 2)
    """Pair, point 1 or 2, and [row, column] in pixels of the upright image at its full size."""
    closer: NDArray[np.int64]  # (P,)
    """The closer point of each pair: 1 or 2."""


@dataclass(frozen=True)
class DA2K:
    """Images and what is asked about each."""

    images: ImageSet
    pairs: dict[str, PointPairs]
    """By the name of the image; for those that are missing too."""

    def fingerprint(self) -> str:
        """Give a short hash of what is asked, and of the right answers."""
        return short_hash([[name, each.points.tolist(), each.closer.tolist()] for name, each in self.pairs.items()])


def read_da2k(source: str | Path) -> DA2K:
    """Read a DA-2K folder, one that holds it as `DA-2K` or (scenes) `da2k`, or its annotations.json.

    The image files are only opened to see that the points lie inside; one that is broken is left for whoever
    reads it.

    Raises:
        InnerVisionError: the annotations cannot be read, are not in this format or name a file outside of their
            folder; a point lies outside of its image; none of the images is there.
    """
    source = Path(source).expanduser()
    if source.is_dir():
        places = [source / folder / "annotations.json" for folder in ("", "DA-2K", "da2k")]
        source = next((place for place in places if place.is_file()), places[0])
    content = read_json(source)
    if not isinstance(content, dict) or not content:
        raise InnerVisionError(f"{source} is not an annotation file of DA-2K: it maps no image to pairs of points")
    pairs = {check_inside(source, name): _pairs(source, name, entries) for name, entries in content.items()}
    images = images_inside(source.parent, list(pairs), source)
    if not images.paths:
        raise InnerVisionError(f"none of the {len(pairs)} images of {source} is there, such as {next(iter(pairs))}")
    for name, path in zip(images.names, images.paths, strict=True):
        try:
            size = image_size(path)
        except BadImage:
            continue
        points = pairs[name].points
        if outside := points[(points >= size).any(axis=-1)].tolist():
            raise InnerVisionError(
                f"{source}: the point {outside[0]} (row, column) lies outside of {name}, which has {size[0]} rows and "
                f"{size[1]} columns"
            )
    return DA2K(images, pairs)


def _pairs(source: Path, name: str, entries: Any) -> PointPairs:
    if not isinstance(entries, list) or not entries:
        raise InnerVisionError(f"{source} has no list of pairs for {name}")
    for entry in entries:
        if (
            not isinstance(entry, dict)
            or entry.get("closer_point") not in ("point1", "point2")
            or not all(_is_point(entry.get(key)) for key in ("point1", "point2"))
        ):
            raise InnerVisionError(
                f"{source} has a pair for {name} that lacks point1 or point2 ([row, column], whole numbers from 0) or "
                f"closer_point (point1 or point2): {entry!r:.120}"
            )
    scene = re.search(r"(?:^|/)images/([^/]+)/", name)
    return PointPairs(
        scene_type=scene[1] if scene else "",
        points=np.array([[entry["point1"], entry["point2"]] for entry in entries]),
        closer=np.array([int(entry["closer_point"][-1]) for entry in entries]),
    )


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is int and number >= 0 for number in value)
