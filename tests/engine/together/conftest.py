"""What is trained in one and in several processes."""

from dataclasses import replace
from pathlib import Path

import pytest

from innervision.config import TrainSettings
from stand_ins import write_noise_images
from tiny_experts import save_tiny_depth, save_tiny_gen
from tiny_mllms import save_tiny
from train_runs import Alone, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models, two experts, and 19 images of which one is broken."""
    root = tmp_path_factory.mktemp("together")
    for family in ("llava", "qwen2_vl"):
        save_tiny(family, root / family)
    save_tiny_depth(root / "depth")
    save_tiny_gen(root / "gen")
    write_noise_images(root / "images", 19, size=(40, 60))
    (root / "images/0004.png").write_bytes(b"no image")
    return root


@pytest.fixture
def settings(folder: Path, tmp_path: Path) -> TrainSettings:
    return TrainSettings(
        mllm=str(folder / "llava"),
        targets=f"depth={folder / 'depth'},gen={folder / 'gen'}",
        images=str(folder / "images"),
        out=str(tmp_path / "run"),
        layers="vision,0,4",
        batch_size=4,
        micro_batch_size=1,  # else states would depend on the images beside
        workers=0,
        save_minutes=60,
        device="cpu",
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """Give the folder of the run that one process makes with some settings."""
    done: dict[str, str] = {}

    def run(settings: TrainSettings) -> str:
        key = str(replace(settings, out=""))
        if key not in done:
            done[key] = str(tmp_path_factory.mktemp("alone") / "run")
            train(0, replace(settings, out=done[key]))
        return done[key]

    return run
