"""What finding places costs: passes of the vision tower, for the sizes of real images.

python -m benchmarks.places FOLDER [FOLDER ...]

Counts what tiny models with random weights are asked, and works out what Qwen2-VL-7B would be: its experiments depend
on the grids of tokens alone.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from innervision.data.images import image_size
from innervision.data.sources import find_images
from innervision.mllm import MLLM
from innervision.mllm.places import PlaceFinder, Size, _View

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from tiny_mllms import save_tiny  # the tests are no package

TINY = ("llava", "qwen2_vl")

CELL = 28
"""Side in pixels of what one token of Qwen2-VL stands for: 2 × 2 patches of 14."""
TOWER, TOWER_WIDTH, TOWER_LAYERS = 0.63e9, 1280, 32
"""Weights of the layers of Qwen2-VL's vision tower, their width and number."""
DECODER, DECODER_WIDTH, DECODER_LAYERS = 6.5e9, 3584, 28
"""The same of the decoder of Qwen2-VL-7B, without embeddings and logits."""
TEXT_TOKENS = 30


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.places", description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", help="folders, COCO annotations or lists of images")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    sizes = [image_size(path) for source in options.images for path in find_images(source).paths]
    print(f"{len(sizes)} images of {len(set(sizes))} sizes")
    print(f"{'':<28}{'experiments':>14}{'passes':>10}{'for each image':>18}")
    for family in TINY:
        experiments, passes = count_tiny(family, sizes)
        print(f"{f'{family}, tiny':<28}{experiments:>14}{passes:>10}{passes / len(sizes):>18.2f}")
    experiments, passes, cost = count_full(sizes)
    print(f"{'Qwen2-VL-7B, full size':<28}{experiments:>14}{passes:>10}{passes / len(sizes):>18.2f}")
    print(f"Qwen2-VL-7B: the passes take {cost:.1%} of the operations that one pass over these images takes")


def count_tiny(family: str, sizes: Sequence[Size]) -> tuple[int, int]:
    """Let a tiny model find the places in images of all sizes; give the experiments and the passes that it took."""
    with tempfile.TemporaryDirectory() as folder:
        mllm = MLLM.load(str(save_tiny(family, Path(folder))), device="cpu")
    finder = PlaceFinder(mllm, partial(mllm.builder, prompt="Describe."))
    visit, passes = mllm.visit, 0

    def count(inputs: Any, *others: Any) -> None:
        nonlocal passes
        passes += len(inputs.mask)
        visit(inputs, *others)

    with patch.object(mllm, "visit", count):
        for height, width in dict.fromkeys(sizes):
            finder.find(mllm.prepare([Image.new("RGB", (width, height))], "Describe."), [0])
    return len(finder._experiments), passes


def count_full(sizes: Sequence[Size]) -> tuple[int, int, float]:
    """Work out the same for Qwen2-VL-7B, which squashes an image to the nearest grid of tokens.

    Returns:
        Experiments, passes, and their operations as a share of those that all images take once.
    """
    grids = [tuple(side // CELL for side in smart_resize(*size, factor=CELL)) for size in sizes]
    passes, spent = 0, 0.0
    for rows, columns in set(grids):
        view = _View(shapes={}, ids=(), shows=np.zeros((2, 0)), image_tokens=rows * columns)
        runs = view.bases * (2 * view.strips + 1)
        passes += runs
        spent += runs * tower(rows * columns)
    return len(set(grids)), passes, spent / sum(tower(rows * cols) + decoder(rows * cols) for rows, cols in grids)


def tower(tokens: int) -> float:
    """Give the operations of Qwen2-VL's vision tower for an image of so many tokens: four patches each."""
    patches = 4 * tokens
    return 2 * TOWER * patches + 4 * TOWER_LAYERS * TOWER_WIDTH * patches**2


def decoder(tokens: int) -> float:
    """Give the operations of the decoder of Qwen2-VL-7B for an image of so many tokens, and a prompt."""
    tokens += TEXT_TOKENS
    return 2 * DECODER * tokens + 4 * DECODER_LAYERS * DECODER_WIDTH * tokens**2


if __name__ == "__main__":
    main()
