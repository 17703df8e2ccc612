"""Checkpoints of the original code, and an image."""

import shutil
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def checkpoints(shared: Path) -> Path:
    return shared / "golden/probe_ckpt"


@pytest.fixture(scope="session")
def image(checkpoints: Path) -> Image.Image:
    return Image.open(checkpoints / "image0.png").convert("RGB")


@pytest.fixture
def base(checkpoints: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base model that a test may change."""
    shutil.copytree(checkpoints / "tiny-clip-vit", tmp_path / "tiny-clip-vit")
    return Path(shutil.copytree(checkpoints / "base-tiny-llava-llama3", tmp_path / "llava"))
