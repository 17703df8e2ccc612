"""Runs whose scores are known, with pictures whose colours are known, for pages."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

HOSTILE = "<b>b</b><script>document.title = 'hit'</script>\"'</script /x>&lt;"
IMAGES = [f"images/{kind}/{number}.jpg" for number, kind in enumerate(["indoor", "outdoor"] * 6)]
EASE = np.linspace(-0.1, 0.1, len(IMAGES))
"""What makes an image easy for all sources."""
LAYERS = [-1, 0, 1, 2, 3, 4]
CELLS = ["truth", "expert", "mean", *map(str, LAYERS)]


def write_run(
    run: Path,
    levels: dict[int, float] | None = None,
    *,
    mllm: str = "world/tuned",
    floor: float = 0.3,
    wobble: float = 0.0,
    names: list[str] = IMAGES,
    target: str = "depth",
    groups: tuple[str, str] = ("indoor", "outdoor"),
    pictures: bool = False,
    **facts: object,
) -> Path:
    """Write a run scored by similarity and by depth: `levels[layer]` is its mean score, `floor` the mean feature's.

    An image's score is that plus its ease; the floor's differs from it by `wobble` up and down, image by image.
    """
    levels = dict.fromkeys(LAYERS, 0.7) if levels is None else levels
    ease = np.resize(EASE, len(names))
    turns = np.where(np.arange(len(names)) % 2, wobble, -wobble)
    sources = [("probe", layer, level + ease) for layer, level in levels.items()]
    sources += [("mean", None, floor + ease + turns), ("expert", None, np.full(len(names), 0.95))]
    rows = [
        (name, target, layer, source, "accuracy", "standard", value, group, 10.0)
        for source, layer, values in sources
        for number, (name, value) in enumerate(zip(names, values, strict=True))
        for group in (None, groups[number % 2])
    ]
    columns = ["image", "target", "layer", "source", "metric", "protocol", "value", "group", "weight"]
    table = pd.DataFrame(rows, columns=columns).astype({"layer": "Int64"})
    similarity = table[table["group"].isna() & (table["source"] != "expert")].assign(metric="centred_cosine")
    settings = {"mllm": mllm, "images": "train", "out": str(run), "probe": {"kind": "ridge"}, "random_weights": "none"}
    experts = {target: {"kind": "depth", "name": "world/depth", "revision": None}}
    record = {"mllm": {"name": mllm}, "experts": experts, "images": {"files": "sha256:train"}}
    (run / "scores").mkdir(parents=True)
    content = {"format": 2, "settings": settings, "record": record}
    (run / "run.yaml").write_text(yaml.safe_dump(content))
    table.to_parquet(run / "scores/depth.parquet")
    similarity[columns[:7]].to_parquet(run / "scores/similarity.parquet")
    plan = {"probes": {target: "sha256:probes"}, "files": "sha256:val"}
    hashes = {name: f"{number:016x}" for number, name in enumerate(names)}
    for evaluation in ("depth", "similarity"):
        content = {"plan": plan, "images": hashes, "metrics": {}, "setup": {}, **facts}
        (run / f"scores/{evaluation}.json").write_text(json.dumps(content))
    if pictures:
        write_pictures(run, target, hashes)
    return run


def write_pictures(run: Path, target: str, hashes: dict[str, str], probes: str = "sha256:probes") -> None:
    """Keep a sheet of each image, each cell of one grey: 20 times its number."""
    folder = run / "pictures" / target
    folder.mkdir(parents=True)
    for hash in hashes.values():
        sheet = Image.new("L", (48, 48))
        for number in range(len(CELLS)):
            sheet.paste(20 * number, (number % 3 * 16, number // 3 * 16, number % 3 * 16 + 16, number // 3 * 16 + 16))
        sheet.save(folder / f"{hash}.png")
        Image.new("RGB", (40, 30), (200, 30, 30)).save(folder / f"{hash}.webp")
    images = {
        name: {"hash": hash, "cells": CELLS, "pairs": [[[0.25, 0.25], [0.75, 0.75]]]} for name, hash in hashes.items()
    }
    content = {"probes": probes, "images": images, "classes": []}
    (run / f"pictures/{target}.json").write_text(json.dumps(content))
