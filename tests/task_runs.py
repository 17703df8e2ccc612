"""A trained run of tiny real models with benchmarks for both tasks, in a folder; and its scores."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from innervision.config import EvaluateSettings, ProbeSettings, TaskSettings, TrainSettings
from innervision.engine.evaluate import evaluate_similarity, evaluate_task
from innervision.engine.fit import fit
from innervision.mllm import MLLM
from innervision.targets.depth import DepthTarget
from innervision.targets.seg import SegTarget
from innervision.targets.target import Target
from stand_ins import write_noise_images
from tiny_experts import save_tiny_depth, save_tiny_seg
from tiny_mllms import save_tiny

NAMES = [f"class {i}" for i in range(5)]
IMAGES = 9


def prepare(root: Path) -> None:
    """Write models, images, benchmarks and a trained run `root/run`."""
    save_tiny("llava", root / "llava")
    save_tiny_depth(root / "depth")
    save_tiny_seg(root / "seg", num_classes=len(NAMES))
    write_pairs(root / "DA-2K")
    write_panoptic(root / "coco")
    settings = TrainSettings(
        mllm=str(root / "llava"),
        targets=f"depth={root / 'depth'},seg={root / 'seg'}",
        images=str(write_noise_images(root / "images", 8, size=(40, 60))),
        out=str(root / "run"),
        probe=ProbeSettings(kind="resampler", heads=2, dim_head=8),
        layers="every:2",
        epochs=1,
        batch_size=4,
        workers=0,
    )
    fit(settings, mllm=load_mllm(root), targets=load_targets(root), progress=False)


def load_mllm(root: Path) -> MLLM:
    return MLLM.load(str(root / "llava"), device="cpu")


def load_targets(root: Path) -> list[Target]:
    """The experts with their heads, for small images."""
    return [
        DepthTarget.load(str(root / "depth"), size=56, head=True, device="cpu"),
        SegTarget.load(str(root / "seg"), size=64, head=True, device="cpu"),
    ]


def write_pairs(folder: Path) -> None:
    """Images of noise of two types of scene, two to four pairs each; the first point is always closer."""
    rng = np.random.default_rng(5)
    content = {}
    for i in range(IMAGES):
        kind = ("indoor", "outdoor")[i % 2]
        name = f"images/{kind}/{i:04}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30 + i, 50, 3), dtype=np.uint8)).save(folder / name)
        points = rng.integers(0, 30, (2 + i % 3, 2, 2)).tolist()
        content[name] = [{"point1": a, "point2": b, "closer_point": "point1"} for a, b in points]
    (folder / "annotations.json").write_text(json.dumps(content))


def write_panoptic(root: Path) -> None:
    """Images of noise in COCO's layout, with maps of four classes and void; one class is nowhere there."""
    rng = np.random.default_rng(6)
    write_noise_images(root / "val2017", IMAGES, seed=50, size=(33, 45))
    (root / "annotations/panoptic_val2017").mkdir(parents=True)
    images, annotations = [], []
    for i in range(IMAGES):
        segments = rng.integers(0, 5, (11, 15)).repeat(3, 0).repeat(3, 1)  # 0 = void
        colours = np.stack([segments, np.zeros_like(segments), np.zeros_like(segments)], -1).astype(np.uint8)
        Image.fromarray(colours).save(root / f"annotations/panoptic_val2017/{i:04}.png")
        images.append({"id": i, "file_name": f"{i:04}.png", "height": 33, "width": 45})
        info = [{"id": label + 1, "category_id": 10 + label} for label in range(4)]
        annotations.append({"image_id": i, "file_name": f"{i:04}.png", "segments_info": info})
    # in another order than the expert's classes
    categories = [{"id": 10 + i, "name": name} for i, name in enumerate(reversed(NAMES))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations/panoptic_val2017.json").write_text(json.dumps(content))


def evaluate(root: Path, run: Path, task: str, models: tuple[MLLM, list[Target]] | None = None, **options) -> Path:
    """Score a copy of the run; options are settings."""
    mllm, targets = models or (load_mllm(root), load_targets(root))
    how = {"mllm": mllm, "targets": targets, "progress": False, "overwrite": options.pop("overwrite", False)}
    common = {"batch_size": 2, "workers": 0, "device": "cpu", **options}
    if task == "similarity":
        settings = EvaluateSettings(**{"images": str(root / "coco/val2017"), **common})
        return evaluate_similarity(run, settings, **how)
    data = root / {"depth": "DA-2K", "seg": "coco"}[task]
    return evaluate_task(run, task, TaskSettings(**{"data": str(data), **common}), **how)


def load_and_evaluate(index: int, root: Path, run: Path, tasks: Iterable[str]) -> None:
    """Score a run in one of several processes."""
    models = load_mllm(root), load_targets(root)
    for task in tasks:
        evaluate(root, run, task, models)
