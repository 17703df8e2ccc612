"""Makes the pictures that a page is to show, of images that its first run chooses."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from innervision.config import DrawSettings
from innervision.engine.pictures import DRAWING, LOADING, Wanted, keep_pictures, lacking_pictures
from innervision.engine.progress import Phases
from innervision.errors import InnerVisionError, require
from innervision.registry import find
from innervision.report.figures import ScoredRun, read_run
from innervision.report.page.explorer import choose_images, drawn_tasks, rank_images, shares
from innervision.tasks.task import Task
from innervision.terminal import tell


def make_pictures(runs: Sequence[str | Path], data: str, count: int, *, progress: bool = True, **options: Any) -> None:
    """Make in every run the pictures that a page of `count` images shows and the run has not kept yet.

    Args:
        runs: folders of scored runs; the scores of the first choose the images.
        data: where the images lie: a path for all tasks, or `TASK=PATH,TASK=PATH`. Tasks that are not named have no
            pictures made.
        count: of images, shared out among the targets.
        progress: show bars.
        options: as of `keep_pictures`.

    Raises:
        InnerVisionError: the data cannot be read, or an image is not the one that was scored; a run does not fit its
            models.
    """
    places = parse_data(data)
    read = [read_run(run) for run in runs]
    pairs = drawn_tasks(read[0])
    require(bool(pairs), f"{runs[0]} has no scores of a task whose outputs can be drawn: depth, seg or gen")
    images = {
        (evaluation, target): choose_images(ranking, share)
        for (evaluation, target), share in zip(pairs, shares(count, [name for _, name in pairs]).values(), strict=True)
        if share and (evaluation in places or "" in places) and (ranking := rank_images(read[0], evaluation, target))
    }
    wanted_of: dict[Path, dict[str, Wanted]] = {}
    for run in read:
        has = drawn_tasks(run)
        wanted = wanted_of[run.path] = {}
        for (evaluation, target), names in images.items():
            if (evaluation, target) not in has:
                continue
            hashes = run.facts[evaluation].images
            if others := [name for name in names if name not in hashes]:
                tell(f"{run.path} was not scored on {others[0]} ({evaluation}): it gets no pictures of such images")
            task = _task(run, evaluation, places.get(evaluation) or places[""])
            wanted[target] = Wanted(task, {name: hashes[name] for name in names if name in hashes})
    lacking = [sum(map(len, lacking_pictures(run, wanted).values())) for run, wanted in wanted_of.items()]
    phases = Phases({LOADING: sum(map(bool, lacking)), DRAWING: sum(lacking), "the page": 1}, shown=progress)
    for path, wanted in wanted_of.items():
        keep_pictures(path, wanted, phases=phases, **options)


def parse_data(text: str) -> Mapping[str, str]:
    """Split `PATH`, which stands under an empty name, or `TASK=PATH,TASK=PATH`; a path may hold commas.

    Raises:
        InnerVisionError: a path is empty.
    """
    parts = re.split(r",(?=\s*(?:depth|seg|gen)\s*=)", text)
    places: dict[str, str] = {}
    for part in parts:
        found = re.fullmatch(r"\s*(depth|seg|gen)\s*=(.*)", part, re.DOTALL)
        name, path = (found[1], found[2].strip()) if found else ("", part.strip())
        require(bool(path), f"data={text!r} names no path for {name or 'the tasks'}: write PATH or depth=PATH,seg=PATH")
        places[name] = path
    return places


def _task(run: ScoredRun, evaluation: str, data: str) -> Task:
    """Open the benchmark of a task as the run was scored on it, with the same settings of drawing."""
    kind = find("tasks", evaluation)
    plan = run.facts[evaluation].plan
    drawing = {each.name: plan[each.name] for each in fields(DrawSettings) if each.name in plan}
    try:
        settings = kind.settings_class(data=data, **drawing)
    except TypeError as error:
        raise InnerVisionError(
            f"the scores {evaluation} of {run.path} do not say how they were made: {error}"
        ) from error
    return kind(settings)
