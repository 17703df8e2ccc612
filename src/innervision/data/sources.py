"""From what a user gives as images (COCO, a folder, a list, one file) to the files and their names."""

import hashlib
import json
import os
import posixpath
import random
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from innervision.data.content import content_hashes
from innervision.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from innervision.errors import InnerVisionError, few
from innervision.json_files import read_json, read_text


@dataclass(frozen=True)
class ImageSet:
    """The images of one source, in a fixed order."""

    paths: list[Path]
    """The files that are there."""

    names: list[str]
    """For every path the unique name that score tables use: relative to the root of the set, with `/`."""

    missing: list[tuple[str, str]]
    """(name, reason) of every image that the source lists but that is not there, or cannot be used."""

    notes: list[str] = field(default_factory=list)
    """What a user should know of the source, in a line each."""

    def __len__(self) -> int:
        return len(self.paths)

    def sample(self, count: int, seed: int) -> "ImageSet":
        """Draw `count` of the images, or all where there are no more, and keep their order."""
        chosen = sorted(random.Random(seed).sample(range(len(self)), min(count, len(self))))
        paths, names = [self.paths[i] for i in chosen], [self.names[i] for i in chosen]
        return replace(self, paths=paths, names=names)

    def fingerprint(self) -> str:
        """Give a short hash of the names, their order and the files' content, which tells this set from others."""
        return short_hash([self.names, content_hashes(self.paths)])


def short_hash(content: Any) -> str:
    """Give a short hash of anything that JSON can hold."""
    return "sha256:" + hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def find_images(source: str | Path, split: str | None = None) -> ImageSet:
    """List the images of a source; the files themselves are not opened.

    | source | images | root of the names | order |
    |---|---|---|---|
    | COCO annotations (`.json`) | all that its `images` list | the folder that holds them | as listed |
    | COCO folder | all below its folder `split` | that folder | sorted |
    | any other folder | all below it by suffix, hidden ones left out | the folder | sorted |
    | list (`.txt`) | one path a line; `#` starts a comment line | the list's folder | as listed |
    | image | itself | its folder | |

    A COCO folder has sub-folders such as `train2017` and `val2017`, in it or in its `images`, and either
    `annotations` or several of the former. With only one of these `split` can be left out. The images of
    `ROOT/annotations/captions_train2017.json` are looked for in `ROOT/train2017`, `ROOT/images/train2017`,
    `ROOT` and the like, and the first folder that holds most of them is taken. So the same COCO image has the
    same name whether given by annotations or by folder. An image listed twice counts once. A path in a list
    that leads out of the list's folder keeps its `..` or its absolute form as its name.

    Raises:
        InnerVisionError: the source does not exist, cannot be read or is of an unknown kind; it has no image;
            several splits and none named; annotations that name a file outside of the image folder.
    """
    source = Path(source).expanduser()
    if not os.path.exists(source):
        raise InnerVisionError(f"no such file or folder: {source}")
    if source.is_dir():
        return _from_folder(_split_folder(source, split))
    if split is not None:
        raise InnerVisionError(f"{source} is a file: only a COCO folder has splits such as {split!r}")
    suffix = source.suffix.lower()
    if suffix == ".json":
        return _from_annotations(source)
    if suffix == ".txt":
        return _from_list(source)
    if suffix in IMAGE_SUFFIXES:
        return ImageSet([source], [table_name(source.name)], [])
    raise InnerVisionError(
        f"cannot tell what {source} is: give a folder, COCO annotations (.json), a list of paths (.txt) or an image"
    )


def images_inside(folder: Path, names: Iterable[str], source: Path) -> ImageSet:
    """Look in `folder` for the files that the annotations `source` name.

    Args:
        folder: root of the names.
        names: as `check_inside` gives them, each once.
        source: named in errors.

    Returns:
        The images, called as `table_name` calls the names.

    Raises:
        InnerVisionError: a linked folder leads out of the folder. A link to a single file may.
    """
    return _inside(folder, names, _files(folder, names), source)


def table_name(name: str) -> str:
    r"""Write a file name as tables can hold it: bytes that are not UTF-8, which Linux allows, as \xff and the like."""
    return name.encode(errors="surrogateescape" if _is_of_bytes(name) else "replace").decode(errors="backslashreplace")


def _is_of_bytes(name: str) -> bool:
    """Tell whether a name can be that of a file: JSON can hold half characters that none can have."""
    return not re.search("[\ud800-\udc7f\udd00-\udfff]", name)


def check_inside(source: Path, name: str) -> str:
    """Normalise a relative file name that the annotations `source` hold.

    Raises:
        InnerVisionError: it leads out of the folder that it is relative to.
    """
    if re.match(r"[/\\]|[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        raise InnerVisionError(_outwards(source, name))
    return posixpath.normpath(name)


def scored_split(source: str | Path) -> str | None:
    """Give the split that a COCO folder is scored on, val2017, where it has one; None for any other source."""
    split = "val2017"
    return split if any(place.is_dir() for place in _split_places(Path(source).expanduser(), split)) else None


def _split_places(folder: Path, split: str) -> tuple[Path, Path]:
    return folder / split, folder / "images" / split


def _split_folder(folder: Path, split: str | None) -> Path:
    """The folder to list: `folder` itself, or one split of it where it is a COCO folder."""
    if split is not None:
        tried = _split_places(folder, split)
        found = next(filter(Path.is_dir, tried), None)
        if found is None:
            raise InnerVisionError(f"no split {split!r} in {folder}: neither {tried[0]} nor {tried[1]} exists")
        return found
    splits = [
        place
        for root in (folder, folder / "images")
        for place in sorted(root.glob("*[0-9]/"))
        if re.fullmatch(r"(train|val|test|unlabeled)\d{4}", place.name)
    ]
    if len(splits) > 1:
        names = ", ".join(place.name for place in splits)
        raise InnerVisionError(
            f"{folder} holds several sets of images ({names}): name one, "
            f"such as {splits[-1]} or its annotations (.json)"
        )
    return splits[0] if splits and (folder / "annotations").is_dir() else folder


def _from_folder(folder: Path) -> ImageSet:
    found = sorted(_image_names(folder))
    names = [name for name in found if _suffix(name) in IMAGE_SUFFIXES]
    unread = [name for name in found if _suffix(name) in UNREAD_SUFFIXES]
    images = _divide(folder, names, _files(folder, names))
    note = f"{len(unread):,} files are of formats that are not read: {few(unread)}. Convert them to JPEG or PNG"
    if not images.paths:
        raise InnerVisionError(
            f"no images in {folder} (looked for {', '.join(sorted(IMAGE_SUFFIXES))})" + (f"\n{note}" if unread else "")
        )
    return replace(images, notes=[note] if unread else [])


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _image_names(folder: Path) -> Iterator[str]:
    """Yield the relative path of everything below `folder` that is called as images are; links are followed."""

    def refuse(error: OSError) -> NoReturn:
        raise InnerVisionError(f"cannot list {error.filename}: {error.strerror or error}") from error

    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real in seen:  # a link can lead back to a folder above it
            continue
        seen.add(real)
        for name in files:
            if not name.startswith(".") and _suffix(name) in IMAGE_SUFFIXES | UNREAD_SUFFIXES:
                yield Path(place, name).relative_to(folder).as_posix()


def _from_annotations(source: Path) -> ImageSet:
    names = _coco_file_names(source)
    folders = _folders_beside(source)
    found = {folder: files for folder in folders if (files := _files(folder, names))}
    if not found:
        raise InnerVisionError(
            f"none of the {len(names)} images that {source} lists, such as {names[0]}, is in any of these: "
            f"{', '.join(map(str, folders))}. Put them into one of the folders or give their folder instead"
        )
    folder = max(found, key=lambda folder: len(found[folder]))
    return _inside(folder, names, found[folder], source)


def _coco_file_names(source: Path) -> list[str]:
    """Every `file_name` of a COCO annotation file once, normalised, none leading out of its folder."""
    images = read_json(source, decode=_images_member)
    if not isinstance(images, list):
        raise InnerVisionError(f"{source} is not a COCO annotation file: it has no list 'images'")
    if not images:
        raise InnerVisionError(f"no images in {source}: its list 'images' is empty")
    for image in images:
        if not (isinstance(image, dict) and isinstance(name := image.get("file_name"), str) and name):
            raise InnerVisionError(
                f"{source} is not a COCO annotation file: an entry of 'images' has no 'file_name': {image!r:.80}"
            )
    return list(dict.fromkeys(check_inside(source, image["file_name"]) for image in images))


WHOLE = 64 << 20
"""Characters of JSON up to which all of it is decoded."""


def _images_member(text: str) -> Any:
    """Decode the member `images` of a JSON object, None where it has none.

    Of a large file, what comes after it is not decoded, only its end looked at: the boxes of COCO train2017 would take
    some 20 s and 4 GB.
    """
    if len(text) <= WHOLE:
        content = json.loads(text)
        return content.get("images") if isinstance(content, dict) else None
    if not re.search(r"[]}]\s*}\s*\Z", text[-1000:]):
        json.loads(text)  # it may be cut off, or something may follow
    decoder = json.JSONDecoder()
    next_key = re.compile(r'\s*[{,]\s*"((?:[^"\\]|\\.)*)"\s*:\s*')
    position = 0
    while key := next_key.match(text, position):
        value, position = decoder.raw_decode(text, key.end())
        if key[1] == "images":
            return value
    json.loads(text)  # says what is wrong where this is no JSON
    return None


def _folders_beside(source: Path) -> list[Path]:
    """Where the images of an annotation file may be, likeliest first."""
    # instances_train2017_mini: mini, train2017, instances, instances_train2017_mini
    names = [*reversed(source.stem.split("_")), source.stem]
    here = source.parent
    above = here.parent if here.name not in ("", "..") else here / ".."
    named = [place for name in names for root in (above, here) for place in _split_places(root, name)]
    return list(dict.fromkeys([*named, above, above / "images", here, here / "images"]))


def _from_list(source: Path) -> ImageSet:
    lines = read_text(source, kind="list of paths").split("\n")
    root = Path(os.path.abspath(source.parent))
    listed: dict[Path, str] = {}  # normalised absolute path -> the line, so that no file counts twice
    for line in map(str.strip, lines):
        if line and not line.startswith("#"):
            listed.setdefault(Path(os.path.normpath(root / line)), line)
    if not listed:
        raise InnerVisionError(f"no images in {source}: it holds no path")
    places = {
        (path.relative_to(root) if path.is_relative_to(root) else Path(os.path.normpath(line))).as_posix(): line
        for path, line in listed.items()
    }
    found = _files(source.parent, places.values())
    images = _divide(source.parent, list(places.values()), found, list(places))
    if not images.paths:
        raise InnerVisionError(
            f"none of the {len(places)} files that {source} lists exists, such as "
            f"{source.parent / next(iter(places.values()))}: relative paths start at the list's folder"
        )
    return images


def _files(folder: Path, places: Iterable[str]) -> dict[str, str]:
    """Map those of `places` in a folder that are files to where they are once links to folders are followed.

    Every folder is listed once: asking for 118,000 files one by one takes minutes on a network drive.
    """
    wanted = defaultdict(list)
    for place in places:
        wanted[os.path.dirname(os.path.join(folder, place))].append(place)
    found: dict[str, str] = {}
    for parent, inside in wanted.items():
        try:
            with os.scandir(parent or ".") as entries:
                files = {entry.name for entry in entries if _is_file(entry)}
        except (OSError, ValueError):  # no such folder, or a name that no folder can have
            continue
        real = os.path.realpath(parent)
        found |= {place: os.path.join(real, name) for place in inside if (name := os.path.basename(place)) in files}
    return found


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link in a circle, or into a folder that may not be entered
        return False


def _inside(folder: Path, names: Iterable[str], files: dict[str, str], source: Path) -> ImageSet:
    """Make a set of the images that the annotations `source` name, unless a linked folder leads out of the folder.

    Links to single files are the user's own, as the caches of the Hub and of DVC make them.
    """
    inside = os.path.join(os.path.realpath(folder), "")
    for name, real in files.items():
        if not real.startswith(inside):
            raise InnerVisionError(_outwards(source, name))
    return _divide(folder, list(names), files)


def _outwards(source: Path, name: str) -> str:
    return (
        f"{source} names an image outside of its folder: {name}. "
        "Annotations may not do that; if you trust it, give a folder or a list (.txt) instead"
    )


def _divide(folder: Path, places: Sequence[str], files: Container[str], names: Sequence[str] | None = None) -> ImageSet:
    """Make a set of what is there and what is missing of `places` in a folder, by name (by default the place)."""
    called = {place: table_name(name) for place, name in zip(places, names or places, strict=True)}
    if len(set(called.values())) < len(called):
        raise InnerVisionError(f"two files in {folder} have names that differ by what is not UTF-8 alone: rename one")
    return ImageSet(
        paths=[folder / place for place in places if place in files],
        names=[called[place] for place in places if place in files],
        missing=[(called[place], _absence(folder, place)) for place in places if place not in files],
    )


def _absence(folder: Path, place: str) -> str:
    """Say why a place holds no file."""
    path = folder / place
    if "://" in place:
        what = "a URL, to be downloaded first"
    elif os.path.isdir(path):
        what = "a folder"
    elif os.path.exists(path):
        what = "not a regular file"
    else:
        what = "a link to nowhere" if os.path.islink(path) else "no such file"
    return table_name(f"{what}: {path}")
