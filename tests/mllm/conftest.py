"""Tiny image-text models, saved once and loaded through the real classes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from innervision.mllm import MLLM
from tiny_mllms import save_tiny


@pytest.fixture(scope="session")
def load_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], MLLM]:
    loaded: dict[str, MLLM] = {}

    def load(family: str) -> MLLM:
        if family not in loaded:
            folder: Path = tmp_path_factory.mktemp(family)
            loaded[family] = MLLM.load(str(save_tiny(family, folder)), device="cpu")
        return loaded[family]

    return load


@pytest.fixture
def unequal_images() -> list[Image.Image]:
    """Three images of noise: wide, tall, square."""
    rng = np.random.default_rng(0)
    shapes = [(40, 90), (90, 40), (64, 64)]
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in shapes]
