"""What the trainings of the world's models share: scenes in bulk, the loop, and how weights are saved."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from tqdm import tqdm

from innervision.files import atomic_write
from innervision.world.dataset import FIRST_INDEX
from innervision.world.scenes import VERSION, Scene, render

SIZE = 112
"""Side in pixels of the scenes that the models learn from and are measured on."""


@dataclass(frozen=True, eq=False)
class Scenes:
    """Many scenes of one split in arrays, scene i with index `first + i`; training scenes lie on the disk."""

    seed: int
    first: int
    images: NDArray[np.uint8]  # (N, H, W, 3)
    depths: NDArray[np.float16]  # (N, H, W) metres
    panoptic: NDArray[np.uint8]  # (N, H, W) segment ids, as `Scene.panoptic`
    semantic: NDArray[np.uint8]  # (N, H, W) position of the pixel's category in CATEGORIES
    objects: list[list[dict[str, Any]]]  # fields of each `SceneObject`, and whether it is `named`
    captions: list[list[str]]

    def __len__(self) -> int:
        return len(self.images)


def load_scenes(folder: Path, split: str, count: int, seed: int = 0, *, progress: bool = True) -> Scenes:
    """Give the first `count` scenes of `split` ("train" or "val"), which are rendered to `folder` once.

    Raises:
        InnerVisionError: the disk is full or the folder cannot be written.
    """
    first = FIRST_INDEX[split]
    stem = f"{split}-v{VERSION}-s{seed}-n{count}"
    facts = folder / f"{stem}.json"
    kinds: dict[str, tuple[Any, tuple[int, ...]]] = {
        "images": (np.uint8, (3,)),
        "depths": (np.float16, ()),
        "panoptic": (np.uint8, ()),
        "semantic": (np.uint8, ()),
    }
    paths = {kind: folder / f"{stem}-{kind}.npy" for kind in kinds}
    if not facts.exists():  # it is written last
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            kind: np.lib.format.open_memmap(paths[kind], "w+", dtype, (count, SIZE, SIZE, *rest))
            for kind, (dtype, rest) in kinds.items()
        }
        words: dict[str, list[Any]] = {"objects": [], "captions": []}
        for i in tqdm(range(count), desc=f"{split} scenes", unit="scene", disable=not progress):
            scene = render(seed, first + i, SIZE)
            positions = np.zeros(256, np.uint8)
            for segment in scene.segments:
                positions[segment.id] = segment.category_id - 1
            arrays["images"][i], arrays["depths"][i] = scene.image, scene.depth
            arrays["panoptic"][i], arrays["semantic"][i] = scene.panoptic, positions[scene.panoptic]
            words["objects"].append([asdict(item) | {"named": item.named} for item in scene.objects])
            words["captions"].append(scene.captions)
        for array in arrays.values():
            array.flush()
        with atomic_write(facts) as path:
            path.write_text(json.dumps(words), encoding="utf-8")
    loaded = {kind: np.load(path, mmap_mode="r") for kind, path in paths.items()}
    return Scenes(seed, first, **loaded, **json.loads(facts.read_text(encoding="utf-8")))


@cache
def held_out(count: int) -> list[Scene]:
    """Give the first scenes that no training sees, those of `innervision data scenes --val COUNT`."""
    return [render(0, FIRST_INDEX["val"] + i, SIZE) for i in range(count)]


def draw_batch(scenes: Scenes, dice: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw scenes, about half of them mirrored.

    Returns:
        images (B, 3, H, W), 0 to 1; depths (B, H, W) in metres; positions of categories (B, H, W).
    """
    chosen = dice.integers(len(scenes), size=size)
    images = torch.from_numpy(scenes.images[chosen]).permute(0, 3, 1, 2).float() / 255
    maps = images, torch.from_numpy(scenes.depths[chosen]).float(), torch.from_numpy(scenes.semantic[chosen]).long()
    mirrored = torch.from_numpy(dice.random(size) < 0.5)
    for drawn in maps:
        drawn[mirrored] = drawn[mirrored].flip(-1)
    return maps


def resampling(*sizes: int) -> Tensor:
    """Give the matrix (last size, SIZE) that resizes a side of a scene to each of `sizes` in turn, bilinearly."""
    columns = torch.eye(SIZE)[None, None]
    for size in sizes:
        columns = nn.functional.interpolate(columns, (size, SIZE), mode="bilinear", antialias=True)
    return columns[0, 0]


def optimize(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    steps: int,
    lr: float,
    *,
    weight_decay: float = 0.02,
    warmup: float = 0.05,
    saved: Path | None = None,
    label: str = "",
    progress: bool = True,
) -> None:
    """Minimise `loss(step)` over the trainable parameters of `model` with AdamW.

    The learning rate rises over the share `warmup` of the steps to `lr` and falls to 0 by a half cosine;
    gradients are cut to norm 1, and vectors (norms, biases) do not decay. The weights are kept in the file `saved`,
    if given; a call that finds it there loads them instead.
    """
    if saved is not None and saved.exists():
        load_model(model, saved)
        model.eval()
        return
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    rise = max(1, round(warmup * steps))

    def rate(step: int) -> float:
        after = (step - rise) / max(1, steps - rise)
        return (step + 1) / rise if step < rise else (1 + math.cos(math.pi * after)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    with tqdm(range(steps), desc=label, unit="step", disable=not progress) as bar:
        for step in bar:
            optimizer.zero_grad(set_to_none=True)
            value = loss(step)
            value.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{value.item():.3f}")
    model.eval()
    if saved is not None:
        with atomic_write(saved) as path:
            save_model(model, str(path))


def save_half(model: Any, folder: Path) -> None:
    """Save a model (or pipeline) in half precision with its class's own `save_pretrained`; it stays as it is."""
    copy.deepcopy(model).to(dtype=torch.float16).save_pretrained(folder)
