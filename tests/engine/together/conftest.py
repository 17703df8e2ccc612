"""What is trained in one and in several processes."""

from dataclasses import replace
from pathlib import Path

import pytest

from innervision.config import TrainSettings
from stand_ins import write_noise_images
from train_runs import Alone, train


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """19 images of which one is broken."""
    folder = write_noise_images(tmp_path_factory.mktemp("images"), 19, size=(40, 60))
    (folder / "0004.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def settings(settings: TrainSettings, images: Path) -> TrainSettings:
    """In micro-batches of one image, as states depend on the images beside."""
    return replace(settings, images=str(images), layers="vision,0,4", batch_size=4, micro_batch_size=1, save_minutes=60)


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
