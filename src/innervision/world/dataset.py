"""Scenes on disk, in the layouts of the real benchmarks: COCO's, and DA-2K's for depth pairs.

    OUT/scenes.json                              the settings; names the folder as ours
    OUT/train2017/000000000001.jpg               val2017/ likewise
    OUT/annotations/captions_train2017.json      panoptic_train2017.json and .../*.png, same for val
    OUT/depth/train2017/000000000001.png         16 bit, millimetres; COCO has no place for it
    OUT/da2k/annotations.json                    pairs of points in val scenes
    OUT/da2k/images/indoor/000500000001.jpg      outdoor/ likewise
    OUT/da2k/depth/indoor/000500000001.png       the same as in depth/val2017

An image's id is the index of its scene: `render(seed, id, size)` gives all else that is known about it.
"""

import json
import shutil
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from innervision.errors import InnerVisionError
from innervision.files import atomic_write, locked
from innervision.world.scenes import CATEGORIES, VERSION, Dice, Scene, depth_map, render

FIRST_INDEX = {"train": 1, "val": 500_000_001}
"""Where the scenes of a split begin; they count up from here, so no scene is in both."""

APART = 1.5
"""The farther point of a pair is at least so many times as deep as the closer one."""

Pair = dict[str, Any]


def write_scenes(
    out: Path, train: int, val: int, seed: int = 0, size: int = 112, workers: int = 1, progress: bool = True
) -> None:
    """Write `train` and `val` scenes of world `seed`, `size` pixels a side, with `workers` processes.

    An interrupted call resumes where it stopped; a finished folder is left as it is.

    Raises:
        InnerVisionError: the folder holds something else or scenes of other settings, or the disk is full.
    """
    out = Path(out)
    counts = {"train": train, "val": val}
    if min(counts.values()) < 0 or not sum(counts.values()) or seed < 0 or size < 48 or workers < 1:
        raise InnerVisionError(
            "scenes need at least one image, a side of 48 pixels or more, a seed of 0 or more and one worker"
        )
    with locked(out / ".lock"):
        _claim(out, {"version": VERSION, "seed": seed, "size": size, **counts})
        finished = out / ("da2k/annotations.json" if val else "annotations/panoptic_train2017.json")
        if not finished.exists():
            tasks = [
                (out, split, index, min(_CHUNK, first + counts[split] - index), seed, size)
                for split, first in FIRST_INDEX.items()
                for index in range(first, first + counts[split], _CHUNK)
            ]
            with tqdm(total=train + val, desc="drawing scenes", unit=" scenes", disable=not progress) as bar:
                for written in _write_chunks(tasks, workers):
                    bar.update(written)
            for left_behind in out.rglob(".[0-9]*-*"):  # temporary files of a call that was killed
                left_behind.unlink()
            _write_annotations(out, counts)
        shutil.rmtree(out / ".parts", ignore_errors=True)


@cache
def mean_depth(seed: int, size: int = 112, scenes: int = 400) -> NDArray[np.float64]:
    """Give the mean depth map (H, W), in metres, of the first training scenes: what place alone says."""
    total = np.zeros((size, size))
    for index in range(FIRST_INDEX["train"], FIRST_INDEX["train"] + scenes):
        total += depth_map(seed, index, size)
    return total / scenes


def choose_pairs(scene: Scene, prior: NDArray[np.float64], dice: Dice) -> list[Pair]:
    """Two pairs of points of which the map `prior` orders one right and one wrong; none where that cannot be.

    "An object is nearer than what surrounds it" is worth as little: either both pairs compare two objects, or
    an object is the nearer point of one pair and the farther of the other. The prior's depths differ by about
    the same factor in both, so that the size of its step tells no more than its sign. A pair's depths are at
    least half apart (`APART`), as those are that people order with confidence; its points lie well within different
    regions, where depth is smooth.
    """
    found: dict[tuple[bool, str], list[tuple[float, Pair]]] = {}
    points = _points(scene, dice)
    for near, near_id, near_is_thing in points:
        for far, far_id, far_is_thing in points:
            if near_id == far_id or not (near_is_thing or far_is_thing):
                continue
            if scene.depth[far] < APART * scene.depth[near]:
                continue
            nearer = "either" if near_is_thing and far_is_thing else "object" if near_is_thing else "stuff"
            step = float(prior[far] / prior[near])
            pair = {"point1": list(near), "point2": list(far), "closer_point": "point1"}
            found.setdefault((step > 1, nearer), []).append((max(step, 1 / step), pair))
    matches = []
    for right, wrong in (("either", "either"), ("stuff", "object"), ("object", "stuff")):
        sides = sorted([found.get((True, right), []), found.get((False, wrong), [])], key=len)
        if sides[0]:
            step, pair = dice.pick(sides[0])
            _, other = min(sides[1], key=lambda entry: abs(entry[0] - step))
            matches.append([pair, other])
    return dice.shuffled(dice.pick(matches)) if matches else []


_MARGIN = 5
"""Side in pixels (of a 112-pixel image) of the square around a point that must be all of one region."""


def _points(scene: Scene, dice: Dice) -> list[tuple[tuple[int, int], int, bool]]:
    """Points well within the objects, the ground and the walls: (row, column), segment, whether a thing."""
    side = max(3, round(_MARGIN * len(scene.depth) / 112))
    inside = ndimage.maximum_filter(scene.panoptic, side) == ndimage.minimum_filter(scene.panoptic, side)
    inside &= ndimage.maximum_filter(scene.depth, side) < 1.15 * ndimage.minimum_filter(scene.depth, side)
    points = []
    for segment in scene.segments:
        places = np.flatnonzero(inside & (scene.panoptic == segment.id)).tolist()
        if not places or segment.category_id == _SKY_ID:
            continue
        for _ in range(4 if segment.isthing else 8):
            row, column = divmod(dice.pick(places), scene.depth.shape[1])
            points.append(((row, column), segment.id, segment.isthing))
    return points


# --- files --------------------------------------------------------------------------------------------------

_CHUNK = 50
_SKY_ID = next(category["id"] for category in CATEGORIES if category["name"] == "sky")
_README = """\
# Scenes
Made by `innervision data scenes`; `scenes.json` holds the settings.

| path | what |
|---|---|
| `train2017/`, `val2017/`, `annotations/` | images, captions and panoptic maps in COCO's layout |
| `depth/` | depth along the optical axis in millimetres, 16-bit PNG; the sky is at 50 m |
| `da2k/` | pairs of points in val images in DA-2K's layout; `point1` is closer; their depth in `da2k/depth/` |

The number in a file name is the image's id and the index of its scene: in Python,
`innervision.world.scenes.render(seed, index, size)` gives the scene again, with its objects and camera.
"""

Task = tuple[Path, str, int, int, int, int]


def _claim(out: Path, settings: dict[str, int]) -> None:
    """Mark an empty folder as ours, or find our mark with the same settings."""
    marker = out / "scenes.json"
    if marker.is_file():
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found != settings:
            raise InnerVisionError(
                f"{out} holds scenes with other settings ({found}, not {settings}): "
                "choose another folder or delete this one"
            )
    elif out.exists() and not (out.is_dir() and all(p.name.startswith((".scenes-", ".lock")) for p in out.iterdir())):
        raise InnerVisionError(f"{out} holds something other than scenes: choose an empty folder")
    else:
        with atomic_write(marker) as path:
            path.write_text(json.dumps(settings), encoding="utf-8")
        with atomic_write(out / "README.md") as path:
            path.write_text(_README, encoding="utf-8")


def _write_chunks(tasks: Sequence[Task], workers: int) -> Iterator[int]:
    """Write with `workers` processes (1 = this one), and yield how many scenes each chunk holds."""
    if workers == 1:
        yield from map(_write_chunk, tasks)
        return
    # Spawned, not forked: the caller may have threads running, and a fork may inherit their locks.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_leave_interrupts_to_the_caller) as pool:
        yield from pool.map(_write_chunk, tasks)


def _leave_interrupts_to_the_caller() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it goes to the whole process group


def _write_chunk(task: Task) -> int:
    """Write the images of some scenes and then, as the sign that they are all there, their annotations."""
    out, split, first, count, seed, size = task
    part = _part(out, split, first)
    if not part.exists():
        record: dict[str, Any] = {"images": [], "captions": [], "panoptic": [], "pairs": {}}
        for index in range(first, first + count):
            _write_scene(out, split, render(seed, index, size), index, seed, record)
        with atomic_write(part) as path:
            path.write_text(json.dumps(record), encoding="utf-8")
    return count


def _part(out: Path, split: str, first: int) -> Path:
    return out / ".parts" / f"{split}-{first:012d}.json"


def _write_scene(out: Path, split: str, scene: Scene, index: int, seed: int, record: dict[str, Any]) -> None:
    height, width = scene.depth.shape
    name, year = f"{index:012d}", f"{split}2017"
    colours, segments = _panoptic(scene)
    image = Image.fromarray(scene.image)
    _save(image, out / year / f"{name}.jpg")
    _save(Image.fromarray(colours), out / "annotations" / f"panoptic_{year}" / f"{name}.png")
    millimetres = np.rint(scene.depth * 1000).astype(np.uint16)
    depth = Image.fromarray(millimetres)
    _save(depth, out / "depth" / year / f"{name}.png")

    record["images"].append({"id": index, "file_name": f"{name}.jpg", "width": width, "height": height})
    for number, caption in enumerate(scene.captions):
        identity = index * len(scene.captions) + number
        record["captions"].append({"id": identity, "image_id": index, "caption": caption})
    record["panoptic"].append({"image_id": index, "file_name": f"{name}.png", "segments_info": segments})
    if split == "val":
        pairs = choose_pairs(scene, mean_depth(seed, height), Dice(seed, index, 1))
        if pairs:
            path = f"images/{scene.place}/{name}.jpg"
            _save(image, out / "da2k" / path)
            _save(depth, out / f"da2k/depth/{scene.place}/{name}.png")
            record["pairs"][path] = pairs


def _panoptic(scene: Scene) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """The map in COCO's colours (id = red + 256 · green + 256² · blue) and its segments."""
    colours = np.zeros((*scene.panoptic.shape, 3), np.uint8)
    infos = []
    for segment in scene.segments:
        red, green, blue = _COLOUR[segment.category_id]
        red += segment.id if segment.isthing else 0
        colours[scene.panoptic == segment.id] = red, green, blue
        infos.append(
            {
                "id": red + 256 * green + 256 * 256 * blue,
                "category_id": segment.category_id,
                "area": segment.area,
                "bbox": list(segment.bbox),
                "iscrowd": 0,
            }
        )
    return colours, infos


_COLOUR: dict[int, list[int]] = {category["id"]: category["color"] for category in CATEGORIES}


def _save(image: Image.Image, path: Path) -> None:
    with atomic_write(path) as temporary:
        image.save(temporary, quality=95, subsampling=0) if path.suffix == ".jpg" else image.save(temporary)


def _write_annotations(out: Path, counts: dict[str, int]) -> None:
    pairs: dict[str, list[Pair]] = {}
    for split, first in FIRST_INDEX.items():
        whole: dict[str, list[Any]] = {"images": [], "captions": [], "panoptic": []}
        for index in range(first, first + counts[split], _CHUNK):
            record = json.loads(_part(out, split, index).read_text(encoding="utf-8"))
            for key, items in whole.items():
                items += record[key]
            pairs |= record["pairs"]
        if whole["images"]:
            info = {"description": f"InnerVision scenes, {split}", "version": str(VERSION)}
            head = {"info": info, "licenses": [], "images": whole["images"]}
            _write_json(out / f"annotations/captions_{split}2017.json", {**head, "annotations": whole["captions"]})
            _write_json(
                out / f"annotations/panoptic_{split}2017.json",
                {**head, "annotations": whole["panoptic"], "categories": CATEGORIES},
            )
    if counts["val"]:
        _write_json(out / "da2k/annotations.json", pairs)


def _write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
