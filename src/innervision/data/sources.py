"""From what a user gives as images (COCO, a folder, a list, one file) to the files and their names."""

import hashlib
import json
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from innervision.data.content import content_hashes
from innervision.data.images import IMAGE_SUFFIXES
from innervision.errors import InnerVisionError


@dataclass(frozen=True)
class ImageSet:
    """The images of one source, in a fixed order."""

    paths: list[Path]
    """The files that are there."""

    names: list[str]
    """For every path the unique name that score tables use: relative to the root of the set, with `/`."""

    missing: list[tuple[str, str]]
    """(name, reason) of every image that the source lists but that is not there."""

    def __len__(self) -> int:
        return len(self.paths)

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
        images = _from_folder(_split_folder(source, split))
    elif split is not None:
        raise InnerVisionError(f"{source} is a file: only a COCO folder has splits such as {split!r}")
    elif source.suffix.lower() == ".json":
        images = _from_annotations(source)
    elif source.suffix.lower() == ".txt":
        images = _from_list(source)
    elif source.suffix.lower() in IMAGE_SUFFIXES:
        images = ImageSet([source], [source.name], [])
    else:
        raise InnerVisionError(
            f"cannot tell what {source} is: give a folder, COCO annotations (.json), a list of paths (.txt) or an image"
        )
    _check_names(images.names)
    return images


def images_inside(folder: Path, names: list[str], source: Path) -> ImageSet:
    """Look in `folder` for the files that the annotations `source` name; each counts once.

    Args:
        folder: root of the names.
        names: relative to it, with `/`.
        source: named in errors.

    Raises:
        InnerVisionError: a name, or a link behind it, leads out of the folder.
    """
    names = list(dict.fromkeys(check_inside(source, name) for name in names))
    paths = [os.path.join(str(folder), name) for name in names]
    files = _files(paths)
    _refuse_links_outwards(source, folder, names, paths, files)
    _check_names(names)
    return _divide(names, paths, files)


def check_inside(source: Path, name: str) -> str:
    """Normalise a relative file name that the annotations `source` hold.

    Raises:
        InnerVisionError: it leads out of the folder that it is relative to.
    """
    if re.match(r"[/\\]|[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        raise InnerVisionError(_outwards(source, name))
    return posixpath.normpath(name)


def read_json(source: Path) -> Any:
    """Read a JSON file.

    Raises:
        InnerVisionError: it does not exist, cannot be read or is not JSON.
    """
    return _parse(source, json.loads)


def scored_split(source: str | Path) -> str | None:
    """Give the split that a COCO folder is scored on, val2017, where it has one; None for any other source."""
    folder, split = Path(source).expanduser(), "val2017"
    return split if (folder / split).is_dir() or (folder / "images" / split).is_dir() else None


def _split_folder(folder: Path, split: str | None) -> Path:
    """The folder to list: `folder` itself, or one split of it where it is a COCO folder."""
    if split is not None:
        tried = (folder / split, folder / "images" / split)
        found = next((place for place in tried if os.path.isdir(place)), None)
        if found is None:
            raise InnerVisionError(f"no split {split!r} in {folder}: neither {tried[0]} nor {tried[1]} exists")
        return found
    splits = [
        place / name
        for place in (folder, folder / "images")
        for name in sorted(_folder_names(place))
        if re.fullmatch(r"(train|val|test|unlabeled)\d{4}", name)
    ]
    if len(splits) > 1:
        names = ", ".join(place.name for place in splits)
        raise InnerVisionError(
            f"{folder} holds several sets of images ({names}): name one, "
            f"such as {splits[-1]} or its annotations (.json)"
        )
    return splits[0] if splits and os.path.isdir(folder / "annotations") else folder


def _folder_names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []


def _from_folder(folder: Path) -> ImageSet:
    names, missing = [], []
    for name, reason in _images_below(folder):
        if reason:
            missing.append((name, reason))
        else:
            names.append(name)
    if not names:
        raise InnerVisionError(f"no images in {folder} (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    names.sort()
    return ImageSet([folder / name for name in names], names, sorted(missing))


def _images_below(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, reason why it is missing or "") of every image below `folder`; links are followed."""
    seen = set()  # a link can lead back to a folder above it
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            status = os.stat(folder / prefix)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder / prefix) as scan:
                entries = sorted(scan, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            raise InnerVisionError(f"cannot list {folder / prefix}: {error.strerror or error}") from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                pending.append(f"{prefix}{entry.name}/")
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                if _is_file(entry):
                    yield prefix + entry.name, ""
                elif entry.is_symlink():
                    yield prefix + entry.name, f"a link to nowhere: {folder / prefix / entry.name}"


def _from_annotations(source: Path) -> ImageSet:
    names = _coco_file_names(source)
    folders = _folders_beside(source)
    folder, paths, files = folders[0], names, dict[str, bool]()
    for place in filter(os.path.isdir, folders):
        candidates = [os.path.join(str(place), name) for name in names]
        found = _files(candidates)
        if len(found) > len(files):
            folder, paths, files = place, candidates, found
        if len(files) == len(names):
            break
    if not files:
        raise InnerVisionError(
            f"none of the {len(names)} images that {source} lists, such as {names[0]}, is in any of these: "
            f"{', '.join(map(str, folders))}. Put them into one of the folders or give their folder instead"
        )
    _refuse_links_outwards(source, folder, names, paths, files)
    return _divide(names, paths, files)


def _coco_file_names(source: Path) -> list[str]:
    """Every `file_name` of a COCO annotation file once, normalised, none leading out of its folder."""
    images = _parse(source, _images_member)
    if not isinstance(images, list):
        raise InnerVisionError(f"{source} is not a COCO annotation file: it has no list 'images'")
    if not images:
        raise InnerVisionError(f"no images in {source}: its list 'images' is empty")
    return list(dict.fromkeys(_file_name(source, image) for image in images))


def _parse(source: Path, decode: Callable[[str], Any]) -> Any:
    try:
        return decode(source.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InnerVisionError(f"cannot read {source}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InnerVisionError(f"{source} is not valid JSON ({error}): is the file complete?") from error


def _images_member(text: str) -> Any:
    """Decode the member `images` of a JSON object, None where it has none.

    What comes after it is not decoded: the boxes of COCO train2017 would take some 20 s and 4 GB.
    """
    decoder = json.JSONDecoder()
    next_key = re.compile(r'\s*[{,]\s*"((?:[^"\\]|\\.)*)"\s*:\s*')
    position = 0
    while key := next_key.match(text, position):
        value, position = decoder.raw_decode(text, key.end())
        if key[1] == "images":
            return value
    json.loads(text)  # says what is wrong where this is no JSON
    return None


def _file_name(source: Path, image: Any) -> str:
    name = image.get("file_name") if isinstance(image, dict) else None
    if not isinstance(name, str) or not name:
        raise InnerVisionError(
            f"{source} is not a COCO annotation file: an entry of 'images' has no 'file_name': {image!r:.80}"
        )
    return check_inside(source, name)


def _outwards(source: Path, name: str) -> str:
    return (
        f"{source} names an image outside of its folder: {name}. "
        "Annotations may not do that; if you trust it, give a folder or a list (.txt) instead"
    )


def _folders_beside(source: Path) -> list[Path]:
    """Where the images of an annotation file may be, likeliest first."""
    # instances_train2017_mini: mini, train2017, instances, instances_train2017_mini
    names = [*reversed(source.stem.split("_")), source.stem]
    here = source.parent
    above = here.parent if here.name not in ("", "..") else here / ".."
    named = [place for name in names for root in (above, here) for place in (root / name, root / "images" / name)]
    return list(dict.fromkeys([*named, above, above / "images", here, here / "images"]))


def _refuse_links_outwards(
    source: Path, folder: Path, names: list[str], paths: list[str], files: dict[str, bool]
) -> None:
    inside = os.path.join(os.path.realpath(folder), "")
    leads_out = {
        parent: not os.path.join(os.path.realpath(parent), "").startswith(inside)
        for parent in {os.path.dirname(path) for path in files}
    }
    for name, path in zip(names, paths, strict=True):
        if path in files and (
            leads_out[os.path.dirname(path)] or (files[path] and not os.path.realpath(path).startswith(inside))
        ):
            raise InnerVisionError(_outwards(source, name))


def _from_list(source: Path) -> ImageSet:
    try:
        lines = source.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InnerVisionError(f"cannot read {source}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InnerVisionError(f"{source} is not a list of paths: it is not UTF-8 text") from error
    root = os.path.abspath(source.parent)
    listed: dict[str, str] = {}  # normalised absolute path -> the line, so that no file counts twice
    for line in map(str.strip, lines):
        if line and not line.startswith("#"):
            listed.setdefault(os.path.normpath(os.path.join(root, line)), line)
    if not listed:
        raise InnerVisionError(f"no images in {source}: it holds no path")
    names = [_listed_name(root, absolute, line) for absolute, line in listed.items()]
    paths = [os.path.join(str(source.parent), line) for line in listed.values()]
    files = _files(paths)
    if not files:
        raise InnerVisionError(
            f"none of the {len(paths)} files that {source} lists exists, such as {paths[0]}: "
            "relative paths start at the list's folder"
        )
    return _divide(names, paths, files)


def _listed_name(root: str, absolute: str, line: str) -> str:
    inside = os.path.join(root, "")
    if absolute.startswith(inside):
        return absolute.removeprefix(inside).replace(os.sep, "/")
    return (absolute if os.path.isabs(line) else os.path.normpath(line)).replace(os.sep, "/")


def _files(paths: list[str]) -> dict[str, bool]:
    """Map those of `paths` that are files to whether they are links.

    Every folder is listed once: asking for 118,000 files one by one takes minutes on a network drive.
    """
    wanted = defaultdict(list)
    for path in paths:
        folder, name = os.path.split(path)
        wanted[folder].append((name, path))
    found: dict[str, bool] = {}
    for folder, files in wanted.items():
        try:
            with os.scandir(folder or ".") as entries:
                links = {entry.name: entry.is_symlink() for entry in entries if _is_file(entry)}
        except (OSError, ValueError):  # no such folder, or a name that no folder can have
            continue
        found.update((path, links[name]) for name, path in files if name in links)
    return found


def _divide(names: list[str], paths: list[str], files: dict[str, bool]) -> ImageSet:
    listed = list(zip(names, paths, strict=True))
    return ImageSet(
        paths=[Path(path) for _, path in listed if path in files],
        names=[name for name, path in listed if path in files],
        missing=[(name, f"no such file: {path}") for name, path in listed if path not in files],
    )


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link in a circle, or into a folder that may not be entered
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _check_names(names: list[str]) -> None:
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise InnerVisionError(
                f"the file name {name!r} is not UTF-8 and cannot be written into tables: rename it"
            ) from error
