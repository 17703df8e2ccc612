"""Panoptic annotations turned into semantic label maps, as other tools read them.

innervision data semantic COCO --split val2017
"""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from innervision.data.panoptic import PanopticMap, find_annotations, read_maps
from innervision.data.sources import read_json
from innervision.errors import InnerVisionError
from innervision.files import atomic_write
from innervision.processes import map_in_processes

_CHUNK = 50


@dataclass(frozen=True)
class Written:
    """What a conversion has done."""

    folder: Path
    """Of the maps."""
    maps: int
    """How many there are now."""
    missing: int
    """How many the annotations list whose panoptic PNG is not there."""


def write_semantic(source: str | Path, split: str | None = None, workers: int = 1, *, progress: bool = True) -> Written:
    """Write a grey PNG for each panoptic one: its pixels are the places of the categories in the file, 255 is void.

    They go into the folder `panoptic_semseg_SPLIT` beside the annotations. Maps that are there already stay, so a
    call that was interrupted goes on where it stopped.

    Args:
        source: root of COCO, or the panoptic annotation file.
        split: such as val2017; can be left out where there is but one.
        workers: processes.
        progress: show a bar.

    Raises:
        InnerVisionError: the annotations or a PNG cannot be read, or the disk is full.
    """
    if workers < 1:
        raise InnerVisionError(f"workers must be at least 1, not {workers}")
    source = find_annotations(source, split)
    content = read_json(source)
    maps, _ = read_maps(source, content)
    if not maps:
        raise InnerVisionError(f"none of the maps that {source} lists is in {source.with_suffix('')}")
    name = source.stem.removeprefix("panoptic").removeprefix("_")
    folder = source.with_name(f"panoptic_semseg_{name}" if name else "panoptic_semseg")
    root = source.with_suffix("")
    paths = [(entry, folder / entry.path.relative_to(root)) for entry in maps.values()]
    tasks = [task for task in paths if not task[1].exists()]
    chunks = [tasks[start : start + _CHUNK] for start in range(0, len(tasks), _CHUNK)]
    with tqdm(total=len(paths), initial=len(paths) - len(tasks), unit="map", disable=not progress) as bar:
        for count in map_in_processes(_convert, chunks, min(workers, max(1, len(chunks)))):
            bar.update(count)
    return Written(folder, len(paths), len(content["annotations"]) - len(maps))


def _convert(tasks: list[tuple[PanopticMap, Path]]) -> int:
    for source, path in tasks:
        with atomic_write(path) as temporary:
            Image.fromarray(source.labels()).save(temporary)
    return len(tasks)
