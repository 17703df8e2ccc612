"""Images for the experts."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def noise() -> Callable[..., Image.Image]:
    """A function of width, height and seed that gives an RGB image of smooth noise."""

    def make(width: int, height: int, seed: int = 0) -> Image.Image:
        cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)

    return make
