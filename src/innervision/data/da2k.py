"""DA-2K: pairs of points in images, of which one is known to be closer (Yang et al., 2024, arXiv:2406.09414).

FOLDER/annotations.json            {"images/indoor/a.jpg": [{"point1": [row, column], "point2": …,
FOLDER/images/indoor/a.jpg                                   "closer_point": "point1"}, …], …}
FOLDER/depth/indoor/a.png          depth of all pixels, where it is known (see `data.depth_maps`); not in DA-2K itself
"""

import re
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from innervision.data.depth_maps import read_depth_map
from innervision.data.images import BadImage, image_size, orientation
from innervision.data.sources import ImageSet, check_inside, find_images, images_inside, short_hash, table_name
from innervision.errors import InnerVisionError, few
from innervision.json_files import read_json


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
    folder: Path
    """Of the annotations."""

    def depth_map(self, name: str) -> NDArray[np.float64] | None:
        """Read what is known of the depth of an image: (H, W), larger = farther, NaN where it is not known.

        It lies in the folder `depth` as the image does in `images`. None where there is no such file.

        Raises:
            InnerVisionError: it cannot be read, is not of the image's shape, or lies outside of the folder.
        """
        image = self.images.paths[self.images.names.index(name)]
        place = image.relative_to(self.folder)
        parts = place.parts[1:] if place.parts[0] == "images" else place.parts
        path = self.folder.joinpath("depth", *parts).with_suffix(".png")
        if not path.is_file():
            return None
        if not path.parent.resolve().is_relative_to(self.folder.resolve()):
            raise InnerVisionError(f"{path} lies outside of {self.folder}, to which a linked folder leads")
        return read_depth_map(path, image)

    def fingerprint(self) -> str:
        """Give a short hash of what is asked, and of the right answers."""
        return short_hash([[name, each.points.tolist(), each.closer.tolist()] for name, each in self.pairs.items()])


def read_da2k(source: str | Path) -> DA2K:
    """Read a DA-2K folder, one that holds it as `DA-2K` or (scenes) `da2k`, or its annotations.json.

    The image files are only opened to see that the points lie inside: an image for which they do not counts as missing.
    One that is broken is left for whoever reads it.

    Raises:
        InnerVisionError: the annotations cannot be read, are not in this format or name a file outside of their
            folder; none of the images is there or can be used.
    """
    source = Path(source).expanduser()
    if source.is_dir():
        places = [source / folder / "annotations.json" for folder in ("", "DA-2K", "da2k")]
        source = next((place for place in places if place.is_file()), places[0])
    content = read_json(source, unique=True)
    if not isinstance(content, dict) or not content:
        raise InnerVisionError(f"{source} is not an annotation file of DA-2K: it maps no image to pairs of points")
    inside = {name: check_inside(source, name) for name in content}
    if len(set(inside.values())) < len(inside):
        raise InnerVisionError(f"{source} names an image in two ways, such as a.jpg and ./a.jpg")
    pairs = {table_name(inside[name]): _pairs(source, name, entries) for name, entries in content.items()}
    found = images_inside(source.parent, list(inside.values()), source)
    faults = {
        name: fault
        for name, path in zip(found.names, found.paths, strict=True)
        if (fault := _fault(path, pairs[name].points)) is not None
    }
    images = ImageSet(
        [path for name, path in zip(found.names, found.paths, strict=True) if name not in faults],
        [name for name in found.names if name not in faults],
        [*found.missing, *faults.items()],
        _strangers(source.parent, pairs) if len(faults) < len(found) else [],
    )
    if not images.paths:
        left_out = few(f"{name} ({reason})" for name, reason in images.missing)
        raise InnerVisionError(f"none of the {len(pairs)} images of {source} can be scored: {left_out}")
    return DA2K(images, pairs, source.parent)


def _fault(path: Path, points: NDArray[np.int64]) -> str | None:
    """Say which of the points lies outside of an image file; None too where that is broken, which its reader says."""
    try:
        size, turned = image_size(path), orientation(path) > 4
    except BadImage:
        return None
    outside = points[(points >= size).any(axis=-1)].tolist()
    if not outside:
        return None
    stored = turned and not (points >= size[::-1]).any()
    why = (
        ": the points are those of the photograph as it is stored, before its EXIF orientation turns it"
        if stored
        else ""
    )
    return (
        f"the point {outside[0]} (row, column) lies outside of it, which has {size[0]} rows and {size[1]} columns{why}"
    )


def _strangers(folder: Path, pairs: Container[str]) -> list[str]:
    """Note the images of the benchmark's folder that no pair of points is known of."""
    if not (folder / "images").is_dir():
        return []
    there = [f"images/{name}" for name in find_images(folder / "images").names]
    unknown = [name for name in there if name not in pairs]
    return [f"{len(unknown):,} images in {folder} have no pairs of points: {few(unknown)}"] if unknown else []


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
