"""Tiny models, saved and loaded once, and what a run of them is made with."""

from pathlib import Path

import pytest

from innervision.config import TrainSettings
from innervision.mllm import MLLM
from innervision.targets.depth import DepthTarget
from innervision.targets.gen import GenTarget
from innervision.targets.target import Target
from stand_ins import write_noise_images
from tiny_experts import save_tiny_backbone, save_tiny_depth, save_tiny_gen
from tiny_mllms import save_tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two MLLMs, three experts and 13 images; tests only read them."""
    root = tmp_path_factory.mktemp("tiny")
    for family in ("llava", "qwen2_vl"):
        save_tiny(family, root / family)
    save_tiny_depth(root / "depth")
    save_tiny_gen(root / "gen")
    save_tiny_backbone(root / "backbone")
    write_noise_images(root / "images", 13, size=(40, 60))
    return root


@pytest.fixture(scope="session")
def mllm(folder: Path) -> MLLM:
    return MLLM.load(str(folder / "llava"), device="cpu")


@pytest.fixture(scope="session")
def targets(folder: Path) -> list[Target]:
    return [
        DepthTarget.load(str(folder / "depth"), device="cpu", size=56),
        GenTarget.load(str(folder / "gen"), device="cpu"),
    ]


@pytest.fixture
def settings(folder: Path, tmp_path: Path) -> TrainSettings:
    """Exact probes of all layers; a file of tests replaces what it needs otherwise."""
    return TrainSettings(
        mllm=str(folder / "llava"),
        targets=f"depth={folder / 'depth'},gen={folder / 'gen'}",
        images=str(folder / "images"),
        out=str(tmp_path / "run"),
        workers=0,
        save_minutes=0,
        device="cpu",
    )
