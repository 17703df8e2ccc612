"""Good models, images, benchmarks and a scored run, of which the cases of the corpus spoil copies."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stand_ins import write_noise_images
from tiny_experts import save_tiny_depth, save_tiny_gen, save_tiny_seg
from tiny_mllms import save_tiny

Spoil = Callable[[Path], Any]
"""Changes a folder."""

NAMES = [f"class {i}" for i in range(5)]


def write_assets(root: Path) -> None:
    """Write all of them to a folder."""
    save_tiny("llava", root / "llava")
    save_tiny_depth(root / "depth")
    save_tiny_gen(root / "gen")
    save_tiny_seg(root / "seg", num_classes=len(NAMES))
    write_noise_images(root / "images", 6, size=(40, 60))
    write_noise_images(root / "coco/val2017", 6, seed=2, size=(30, 40))
    maps = root / "coco/annotations/panoptic_val2017"
    maps.mkdir(parents=True)
    names = [f"{i:04}.png" for i in range(6)]
    for name in names:
        Image.fromarray(np.full((30, 40, 3), (7, 0, 0), np.uint8)).save(maps / name)
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"image_id": i, "file_name": name, "segments_info": [{"id": 7, "category_id": 1}]}
            for i, name in enumerate(names)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
    }
    (root / "coco/annotations/panoptic_val2017.json").write_text(json.dumps(content))
    write_noise_images(root / "da2k/images/indoor", 4, seed=3, size=(30, 40))
    pair = {"point1": [1, 2], "point2": [20, 30], "closer_point": "point1"}
    (root / "da2k/annotations.json").write_text(json.dumps({f"images/indoor/{i:04}.png": [pair] for i in range(4)}))


def train(root: Path, **changes: str) -> list[str]:
    """Give the words that train on the assets."""
    options = {
        "mllm": f"{root}/llava",
        "targets": f"gen={root}/gen",
        "images": f"{root}/images",
        "out": "run",
        "probe.kind": "resampler",
        "epochs": "1",
        "batch-size": "4",
        "workers": "0",
        "device": "cpu",
    } | changes
    return ["train", *(word for name, value in options.items() for word in (f"--{name}", value))]


def copy(source: Path, to: Path) -> Path:
    """Give a copy of a folder that may be spoilt."""
    return Path(shutil.copytree(source, to, symlinks=True))


def write(name: str, content: bytes | str) -> Spoil:
    """Give what replaces a file."""
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def remove(name: str) -> Spoil:
    """Give what deletes a file."""
    return lambda folder: (folder / name).unlink()


def change(name: str, *keys: str, **values: Any) -> Spoil:
    """Give what sets values in a JSON file, below some keys."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        inner = content
        for key in keys:
            inner = inner[key]
        inner.update(values)
        (folder / name).write_text(json.dumps(content))

    return spoil


def both(*steps: Spoil) -> Spoil:
    """Give several changes after each other."""
    return lambda folder: [step(folder) for step in steps]


def safetensors(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """Give a file of weights with any header."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + data


BROKEN_JSON = {
    "empty": b"",
    "binary": bytes(range(128, 256)),
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "deep": b"[" * 100_000,
    "cut": b'{"a": ',
    "garbage after": b"{} and more",
    "null": b"null",
    "a list": b"[]",
    "endless number": b"1" * 100_000,
}
"""What may stand in the place of a JSON object."""

TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}

BROKEN_SAFETENSORS = {
    "empty": b"",
    "short": b"abc",
    "garbage": bytes(range(256)) * 20,
    "huge header": safetensors(b"{}", length=1 << 40),
    "header is no JSON": safetensors(b"hello   "),
    "header is a list": safetensors(b"[1, 2]  "),
    "deep header": safetensors(b"[" * 200_000),
    "utf-16 header": safetensors('{"a": 1}'.encode("utf-16")),
    "overlap": safetensors(
        {"a": TENSOR | {"shape": [2], "data_offsets": [0, 8]}, "b": TENSOR | {"data_offsets": [4, 8]}}, b"0" * 8
    ),
    "unknown type": safetensors({"a": TENSOR | {"dtype": "F99"}}, b"0000"),
    "negative shape": safetensors({"a": TENSOR | {"shape": [-1]}}, b"0000"),
    "huge shape": safetensors({"a": TENSOR | {"shape": [1 << 62, 4]}}, b"0000"),
    "cut data": safetensors({"a": TENSOR | {"shape": [9], "data_offsets": [0, 36]}}, b"0000"),
    "no tensors": safetensors(b"{}"),
}
"""What may stand in the place of weights."""
