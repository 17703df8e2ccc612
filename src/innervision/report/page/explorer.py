"""The explorer of a page: images chosen by rule, and what the layers of every run show of them."""

import base64
import io
import json
import math
import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
from PIL.Image import Image

from innervision.engine.pictures import columns
from innervision.errors import InnerVisionError, printable
from innervision.json_files import read_json
from innervision.metrics.registry import METRICS, find_metric
from innervision.report.figures import ScoredRun
from innervision.report.files import read_scores
from innervision.report.page.study import Studied, Study
from innervision.report.tables import in_order

DRAWN = ("depth", "seg", "gen")
"""Tasks of which pictures are kept."""
LARGEST = 4096
"""Pixels along a side of a kept sheet, at most."""
STEPS = ((1, 55), (1, 35), (2 / 3, 35), (1 / 2, 30), (1 / 3, 25))
"""Scale and WebP quality of the pictures, tried until they fit."""
CLASSES = [
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#332288"),
    *("#882255", "#44AA99", "#999933", "#AA4499", "#117733", "#DDCC77", "#6699CC", "#661100"),
]
"""Of the classes of an image, the most frequent one first: Okabe and Ito's (2008) palette, then Tol's muted one."""
OTHER = "#BBBBBB"
"""Of all other classes, and of pixels without one."""


@dataclass(frozen=True)
class Ranking:
    """The images of one target, by what the first run scores."""

    evaluation: str
    target: str
    key: str
    """Of the metric."""
    scores: Mapping[str, float]
    """Of each image the mean over the decoder layers (over all where there are none), best first."""


def rank_images(run: ScoredRun, evaluation: str, target: str) -> Ranking | None:
    """Rank the images of a task; by the first of its metrics that single images have. None where there is none."""
    metrics = run.facts[evaluation].metrics
    scores = _of_images(run, evaluation, target)
    probe = scores[scores["source"] == "probe"]
    for key in in_order(probe["metric"].astype(str), [*METRICS, *metrics]):
        metric = find_metric(key, metrics)
        if metric.of_set:
            continue
        rows = probe[probe["metric"] == key]
        rows = rows[rows["layer"] >= 1] if (rows["layer"] >= 1).any() else rows
        means = rows.groupby("image", observed=True)["value"].mean()
        means = means[np.isfinite(means)]
        means = means.sort_index().sort_values(ascending=not metric.higher_is_better, kind="stable")
        return Ranking(evaluation, target, key, {str(name): float(value) for name, value in means.items()})
    return None


def _of_images(run: ScoredRun, evaluation: str, target: str) -> pd.DataFrame:
    """Give the scores of single images, without groups, by the standard rule where there is one."""
    scores = read_scores(run.path, evaluation)
    rows = scores[scores["target"] == target]
    if "group" in rows:
        rows = rows[rows["group"].isna()]
    standard = rows["protocol"] == "standard"
    return rows[standard] if standard.any() else rows


def choose_images(ranking: Ranking, count: int) -> list[str]:
    """Choose images by rule: in turn the best, the worst, the median and one at random, until there are `count`."""
    ranked = [*ranking.scores]
    middle = (len(ranked) - 1) / 2
    drawn = random.Random(0).sample(sorted(ranked), len(ranked))
    orders = [ranked, ranked[::-1], sorted(ranked, key=lambda name: abs(ranked.index(name) - middle)), drawn]
    chosen: list[str] = []
    for order in cycle(orders):
        if len(chosen) >= min(count, len(ranked)):
            break
        chosen.append(next(name for name in order if name not in chosen))
    return sorted(chosen, key=ranked.index)


def shares(count: int, targets: Sequence[str]) -> dict[str, int]:
    """Share a number of images out among targets, the first ones first."""
    return {name: count // len(targets) + (number < count % len(targets)) for number, name in enumerate(targets)}


def drawn_tasks(run: ScoredRun) -> list[tuple[str, str]]:
    """Name the evaluations of a run, and their targets, that are tasks whose outputs can be drawn."""
    pairs = run.summary[["evaluation", "target"]].drop_duplicates().itertuples(index=False)
    found = [(str(each.evaluation), str(each.target)) for each in pairs if each.evaluation in DRAWN]
    return sorted(found, key=lambda pair: [*run.summary["target"].unique()].index(pair[1]))


def explorer(study: Study, count: int, room: int) -> list[dict[str, Any]]:
    """Give what the page shows of each target: its images, and of each run a sheet of cells.

    Images are those that the first run's scores choose, of which a run has kept pictures; where it has kept others
    alone, those. Kept pictures of other probes than the scores' are left out.

    Args:
        study: the runs.
        count: of images, shared out among the targets.
        room: bytes that the pictures may take as text.

    Returns:
        Objects of JSON; pictures are data URLs.

    Raises:
        InnerVisionError: there is not enough room.
    """
    found = list(_targets(study, count))
    for scale, quality in STEPS:
        encoded = [_encode(target, scale, quality) for target in found]
        if len(json.dumps(encoded)) <= room:
            return encoded
    raise InnerVisionError(
        f"pictures of {count} images and {len(study.runs)} runs do not fit into the page: give fewer runs, or fewer "
        f"images with --images"
    )


def _targets(study: Study, count: int) -> Iterator[dict[str, Any]]:
    first = study.runs[0].scored
    pairs = drawn_tasks(first)
    for (evaluation, target), share in zip(pairs, shares(count, [name for _, name in pairs]).values(), strict=True):
        ranking = rank_images(first, evaluation, target)
        if ranking is None or not share:
            continue
        albums = [_read_album(run, evaluation, target) for run in study.runs]
        kept = {name for album in albums for name in album.get("images", {}) if name in ranking.scores}
        names = [name for name in choose_images(ranking, share) if name in kept]
        names += [name for name in ranking.scores if name in kept and name not in names][: share - len(names)]
        ranked = [*ranking.scores]
        scores = [_by_layer(run, ranking, names) for run in study.runs]
        images = []
        for name in sorted(names, key=ranked.index):
            image = _image(albums, ranking, name, [of_run.get(name, {}) for of_run in scores])
            if image:
                images.append({**image, "rank": ranked.index(name) + 1, "of": len(ranked)})
        if images:
            metric = study.metric(ranking.key)
            title = {"target": printable(target), "metric": printable(metric.name), "kind": evaluation}
            yield {**title, "higher": metric.higher_is_better, "images": images}


def _encode(target: dict[str, Any], scale: float, quality: int) -> dict[str, Any]:
    """Put data URLs in the places of a target's pictures."""
    exact = target["kind"] == "seg"  # a class has one colour
    how: dict[str, Any] = {"lossless": True} if exact else {"quality": quality}
    images = [
        {
            **image,
            "photograph": _data_url(image["photograph"], quality=70),
            "runs": {
                number: {**run, "sheet": _data_url(_scaled(run["sheet"], run["cells"], scale), **how)}
                for number, run in image["runs"].items()
            },
        }
        for image in target["images"]
    ]
    return {**target, "images": images}


def _scaled(sheet: Image, cells: Sequence[str], scale: float) -> Image:
    """Scale the cells of a sheet, each to whole pixels."""
    across = columns(len(cells))
    down = math.ceil(len(cells) / across)
    size = across * round(sheet.width / across * scale), down * round(sheet.height / down * scale)
    how = PIL.Image.Resampling.NEAREST if sheet.mode == "P" else PIL.Image.Resampling.BOX
    return sheet if scale == 1 else sheet.resize(size, how)


def _read_album(run: Studied, evaluation: str, target: str) -> dict[str, Any]:
    """Read which pictures a run has kept of a target; none where they are of other probes, or cannot be read."""
    folder = run.scored.path / "pictures"
    try:
        content = read_json(folder / f"{target}.json")
    except InnerVisionError:
        return {}
    scored = (
        (run.scored.facts[evaluation].plan.get("probes") or {}).get(target) if evaluation in run.scored.facts else None
    )
    if not isinstance(content, dict) or content.get("probes") != scored or not isinstance(content.get("images"), dict):
        return {}
    hashes = run.scored.facts[evaluation].images
    usable = {name: entry for name, entry in content["images"].items() if _is_entry(entry, hashes.get(name))}
    return {**content, "images": usable, "folder": folder / target}


def _is_entry(entry: Any, hash: str | None) -> bool:
    """Tell whether an entry of an album is well formed and of the image that was scored: it may come from strangers."""
    if not isinstance(entry, dict) or entry.get("hash") != hash or not re.fullmatch(r"[0-9a-f]{16}", str(hash)):
        return False
    cells, pairs = entry.get("cells"), entry.get("pairs")
    known = isinstance(cells, list) and all(isinstance(cell, str) for cell in cells) and "expert" in cells
    return known and isinstance(pairs, list) and all(_is_pair(pair) for pair in pairs)


def _is_pair(pair: Any) -> bool:
    """Tell whether something is two points of two numbers, 0…1."""
    points = pair if isinstance(pair, list) and len(pair) == 2 else [None]
    return all(
        isinstance(point, list) and len(point) == 2 and all(type(each) is float and 0 <= each <= 1 for each in point)
        for point in points
    )


def _image(
    albums: Sequence[dict[str, Any]], ranking: Ranking, name: str, scores: Sequence[dict[str, float]]
) -> dict[str, Any] | None:
    """Give all that the page shows of one image; None where no run has a readable picture of it.

    Args:
        albums: of the runs.
        ranking: of the images.
        name: of the image.
        scores: of the runs, what the image scores by cell.
    """
    sheets: dict[int, Image] = {}
    entries: dict[int, dict[str, Any]] = {}
    photograph = None
    for number, album in enumerate(albums):
        entry = album.get("images", {}).get(name)
        if entry is None:
            continue
        try:
            sheets[number] = _open(album["folder"] / f"{entry['hash']}.png", "PNG")
            photograph = photograph or _open(album["folder"] / f"{entry['hash']}.webp", "WEBP")
        except (OSError, ValueError, PIL.Image.DecompressionBombError):
            sheets.pop(number, None)
            continue
        entries[number] = entry
    if photograph is None or not entries:
        return None
    legend: list[list[str]] = []
    if ranking.evaluation == "seg":
        labels = albums[next(iter(entries))].get("classes")
        names = [str(label) for label in labels] if isinstance(labels, list) else []
        legend = _colour_classes([*sheets.values()], names)
    first = next(iter(entries.values()))
    return {
        "name": printable(name),
        "score": ranking.scores[name],
        "photograph": photograph,
        "size": photograph.size,
        "pairs": first["pairs"],
        "legend": legend,
        "runs": {
            number: {
                "cells": entries[number]["cells"],
                "sheet": sheets[number] if ranking.evaluation == "seg" else sheets[number].convert("RGB"),
                "columns": columns(len(entries[number]["cells"])),
                "scores": scores[number],
            }
            for number in entries
        },
    }


def _by_layer(run: Studied, ranking: Ranking, names: Collection[str]) -> dict[str, dict[str, float]]:
    """Give by image what it scores at each layer, and as `expert` and `mean`."""
    if ranking.evaluation not in run.scored.facts:
        return {}
    rows = _of_images(run.scored, ranking.evaluation, ranking.target)
    rows = rows[(rows["metric"] == ranking.key) & rows["image"].isin(names) & np.isfinite(rows["value"])]
    rows = rows[rows["source"].isin(["probe", "mean", "expert"])]
    found: dict[str, dict[str, float]] = {}
    for row in rows.itertuples(index=False):
        cell = row.source if row.source != "probe" else str(int(row.layer))
        found.setdefault(str(row.image), {})[str(cell)] = float(row.value)
    return found


def _open(path: Path, kind: str) -> Image:
    """Read a kept picture, of a size that a page can hold."""
    with PIL.Image.open(path, formats=[kind]) as image:
        if max(image.size) > LARGEST:
            raise ValueError(f"{path} is too large")
        image.load()
        return image


def _colour_classes(sheets: Sequence[Image], labels: Sequence[str]) -> list[list[str]]:
    """Give the classes of all runs' sheets of one image their colours, and name those: [name, colour]."""
    counts = np.sum([np.bincount(np.asarray(sheet.convert("P")).ravel(), minlength=256) for sheet in sheets], axis=0)
    order = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label] and label < len(labels)]
    palette = np.tile(_rgb(OTHER), (256, 1))
    for label, colour in zip(order, CLASSES, strict=False):
        palette[label] = _rgb(colour)
    for sheet in sheets:
        sheet.putpalette(palette.astype(np.uint8).tobytes())
    legend = [[printable(labels[label]), colour] for label, colour in zip(order, CLASSES, strict=False)]
    return legend + ([["other", OTHER]] if len(order) > len(CLASSES) else [])


def _rgb(colour: str) -> list[int]:
    return [int(colour[place : place + 2], 16) for place in (1, 3, 5)]


def _data_url(image: Image, **how: Any) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", method=6, **how)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
