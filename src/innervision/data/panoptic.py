"""COCO's panoptic annotations as label maps for semantic segmentation (format: cocodataset.org/#format-data).

ROOT/annotations/panoptic_val2017.json         segments of each image, and the categories
ROOT/annotations/panoptic_val2017/X.png        segment id of each pixel = red + 256 · green + 256² · blue
ROOT/val2017/X.jpg                             the images
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from innervision.data.content import content_hashes
from innervision.data.images import image_size, orientation
from innervision.data.sources import ImageSet, check_inside, find_images, images_inside, short_hash, table_name
from innervision.errors import InnerVisionError, few, require
from innervision.json_files import read_json

VOID = 255
"""Label of pixels that belong to no category and are left out of scores."""


@dataclass(frozen=True)
class PanopticMap:
    """The annotation of one image."""

    path: Path
    """The PNG."""
    segments: dict[int, int]
    """Segment id -> label, the place of its category in the annotation file; crowds are segments as well."""

    def labels(self) -> NDArray[np.uint8]:
        """Read the map.

        Returns:
            (H, W), the label of each pixel; VOID where its segment is not known.

        Raises:
            InnerVisionError: the PNG is missing, broken or holds no colours, or none of the image's segments.
        """
        try:
            with Image.open(self.path, formats=["PNG"]) as image:
                if image.mode not in ("RGB", "RGBA"):
                    raise ValueError(f"its mode is {image.mode}, not RGB")
                colours = np.asarray(image.convert("RGB"), dtype=np.int32)
        except Exception as error:  # on a broken file the decoder raises nearly anything
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise InnerVisionError(f"cannot read the panoptic map {self.path}: {reason}") from error
        ids = colours @ np.array([1, 256, 256**2], dtype=np.int32)
        labels = np.full(ids.shape, VOID, dtype=np.uint8)
        for segment, label in self.segments.items():
            labels[ids == segment] = label
        require(bool((labels != VOID).any()), f"{self.path} shows none of the segments that the annotations list")
        return labels

    def labels_of(self, image: Path) -> NDArray[np.uint8]:
        """Read the map, and see that it is of an image file as it is shown: upright and of the same size.

        Raises:
            InnerVisionError: as `labels`; or the map is of the photograph as it was before it was turned or cropped, or
                may be, where both have one size.
        """
        labels, size, turned = self.labels(), image_size(image), orientation(image)
        if labels.shape != size:
            stored = turned > 4 and labels.shape == size[::-1]
            why = ", as the photograph is stored, before its EXIF orientation turns it" if stored else ""
            raise InnerVisionError(f"its map has {_size(labels.shape)} pixels{why}; the image has {_size(size)}")
        # such a map may be of what is stored or of what is shown: their sizes are the same
        unknown = turned > 1 and (turned <= 4 or size[0] == size[1])
        require(not unknown, "its EXIF orientation may or may not hold for its map, too: write the image upright")
        return labels


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]} × {shape[1]}"


@dataclass(frozen=True)
class Panoptic:
    """Images, their maps and what the labels mean."""

    images: ImageSet
    maps: dict[str, PanopticMap]
    """By the name of the image."""
    categories: list[str]
    """Name of each label from 0 on."""

    def fingerprint(self) -> str:
        """Give a short hash of the annotations and of the maps' content."""
        segments = [[name, list(each.segments.items())] for name, each in self.maps.items()]
        return short_hash([self.categories, segments, content_hashes([each.path for each in self.maps.values()])])


def read_panoptic(source: str | Path, split: str | None = None) -> Panoptic:
    """Read COCO's panoptic annotations of one split, and find the images.

    An image without an annotation, or whose PNG is not there, counts as missing.

    Args:
        source: the root of COCO, or the annotation file (`panoptic_val2017.json`), with its PNGs in the folder of
            the same name beside it.
        split: such as val2017; can be left out where there is but one.

    Raises:
        InnerVisionError: the annotations cannot be had or are not in this format; none of the images is there.
    """
    source = _find_annotations(Path(source).expanduser(), split)
    content = read_json(source)
    found, categories, refused = read_maps(source, content)
    images = find_images(source)
    ids: dict[str, Any] = {}
    for image in content["images"]:
        ids.setdefault(table_name(check_inside(source, image["file_name"])), image.get("id"))
    shared = {number for number, count in Counter(ids.values()).items() if count > 1}
    folder = source.with_suffix("")
    maps, missing = {}, list(images.missing)
    for name in images.names:
        number = ids[name]
        if number in shared:
            missing.append((name, f"another image has its id, {number}"))
        elif number in found:
            maps[name] = found[number]
        else:
            missing.append((name, refused.get(number, f"no panoptic map in {folder}")))
    if not maps:
        raise InnerVisionError(
            f"none of the {len(images)} images of {source} has a map in {folder} that can be used: "
            f"{few(f'{name} ({reason})' for name, reason in missing)}"
        )
    paths = [path for path, name in zip(images.paths, images.names, strict=True) if name in maps]
    strangers = [str(number) for number in {*found, *refused} - set(ids.values())]
    notes = [f"{len(strangers):,} annotations of {source} are of images that it does not list, by id: {few(strangers)}"]
    return Panoptic(ImageSet(paths, [*maps], missing, notes if strangers else []), maps, categories)


def _find_annotations(source: Path, split: str | None) -> Path:
    """Find the panoptic annotation file of a COCO folder; a file is given back as it is."""
    if not source.is_dir():
        if split is not None:
            raise InnerVisionError(f"{source} is no folder: only a COCO folder has splits such as {split!r}")
        return source
    folder = source / "annotations"
    found = sorted(folder.glob(f"panoptic_{split or '*'}.json"))
    if len(found) == 1:
        return found[0]
    if found:
        raise InnerVisionError(f"{folder} has several panoptic files: name one, such as {found[-1]}, or its split")
    raise InnerVisionError(f"no panoptic annotations: {folder}/panoptic_{split or '*'}.json does not exist")


def read_maps(source: Path, content: Any) -> tuple[dict[int, PanopticMap], list[str], dict[int, str]]:
    """Take from the content of a panoptic annotation file the maps that are there, by image id, and the label names.

    Where the file lists no categories, as extracts of COCO's own may not, they are COCO's 133, named by their ids.

    Returns:
        The maps, the names, and of the images whose annotation cannot be used the reason, by image id.

    Raises:
        InnerVisionError: it is not in COCO's panoptic format, or names a file outside of its folder.
    """
    folder = source.with_suffix("")
    maps: dict[int, PanopticMap] = {}
    refused: dict[int, str] = {}
    try:
        categories = content.get("categories") or [{"id": number, "name": str(number)} for number in COCO_IDS]
        names = [str(category["name"]) for category in categories]
        labels = {category["id"]: label for label, category in enumerate(categories)}
        entries = [
            (entry["image_id"], check_inside(source, entry["file_name"]), entry) for entry in content["annotations"]
        ]
        places = list(dict.fromkeys(name for _, name, _ in entries))
        files = images_inside(folder, places, source)
        paths = dict(zip(files.names, files.paths, strict=True))
        for number, name, entry in entries:
            segments = [(part["id"], part["category_id"]) for part in entry["segments_info"] if part["id"]]
            if reason := _fault(segments, labels):
                refused[number] = reason
            elif number in maps or number in refused:
                refused[number] = "it has several annotations"
            elif path := paths.get(table_name(name)):
                maps[number] = PanopticMap(path, {segment: labels[category] for segment, category in segments})
    except (KeyError, TypeError, AttributeError) as error:
        raise InnerVisionError(
            f"{source} is not a COCO panoptic file ({type(error).__name__}: {error}): it needs annotations with "
            "image_id, file_name and segments_info (id, category_id), and categories (id, name)"
        ) from error
    if len(labels) < len(names) or len(names) > VOID:
        raise InnerVisionError(f"{source} lists a category twice, or more than {VOID} of them")
    return {number: found for number, found in maps.items() if number not in refused}, names, refused


def _fault(segments: Sequence[tuple[int, int]], labels: Mapping[int, int]) -> str | None:
    """Say what keeps the segments of an image (id, category id) from being scored."""
    if not segments:
        return "its annotation has no segments"
    count = Counter(segment for segment, _ in segments)
    segment, most = count.most_common(1)[0]
    if most > 1:
        return f"its annotation has the segment {segment} twice"
    if unknown := [(segment, category) for segment, category in segments if category not in labels]:
        segment, category = unknown[0]
        return f"its segment {segment} is of the category {category}, which the annotation file does not list"
    if wrong := [segment for segment, _ in segments if type(segment) is not int]:
        raise TypeError(f"the id {wrong[0]!r:.40} of a segment is no whole number")
    return None


_RANGES = (
    "1-11 13-25 27-28 31-44 46-65 67 70 72-82 84-90 92-93 95 100 107 109 112 118-119 122 125 128 130 133 138 141 "
    "144-145 147-149 151 154-156 159 161 166 168 171 175-178 180-181 184-200"
)
COCO_IDS = [
    number
    for first, _, last in (part.partition("-") for part in _RANGES.split())
    for number in range(int(first), int(last or first) + 1)
]
"""COCO's 133 panoptic categories in the order of its annotation files."""
