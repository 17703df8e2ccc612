"""The world's image generator: how it is trained, and what the one that ships draws."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from tools.world.training import load_scenes
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.transforms.functional import to_pil_image, to_tensor

from innervision.config import DrawSettings
from innervision.targets.gen import GenTarget
from innervision.world.scenes import render
from tools.world import train_gen

VAL = 500_000_001


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Held-out scenes that no figure on the card was measured on."""
    return [Image.fromarray(render(0, VAL + 5000 + number).image) for number in range(24)]


def test_a_few_steps_make_a_pipeline_that_loads_offline(tmp_path: Path, images: list[Image.Image]) -> None:
    diffusers = pytest.importorskip("diffusers")
    scenes = load_scenes(tmp_path / "scenes", "train", 64, progress=False)
    train_gen.train(tmp_path, scenes, 0, effort=0, progress=False)
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(
        tmp_path / "gen", dtype=torch.float32, local_files_only=True
    )
    drawn = pipeline(image=images[:2], num_inference_steps=2, output_type="pt").images
    assert drawn.shape == (2, 3, 56, 56)
    assert drawn.isfinite().all()
    # The normaliser holds what the encoder gives for the training scenes.
    embeddings = GenTarget.load(str(tmp_path / "gen")).encode([Image.fromarray(image) for image in scenes.images])[:, 0]
    normalizer = pipeline.image_normalizer
    torch.testing.assert_close(normalizer.mean[0], embeddings.mean(0), atol=0.02, rtol=0.02)
    torch.testing.assert_close(normalizer.std[0], embeddings.std(0), atol=0.02, rtol=0.02)


def test_what_an_interrupted_training_finished_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    scenes = load_scenes(tmp_path / "scenes", "train", 64, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(train_gen, "train_pipeline", _stop)
        with pytest.raises(KeyboardInterrupt):
            train_gen.train(tmp_path / "stopped", scenes, 0, effort=0, progress=False)
    finished = tmp_path / "stopped/image encoder.safetensors"
    before = finished.stat().st_mtime_ns
    train_gen.train(tmp_path / "stopped", scenes, 0, effort=0, progress=False)
    assert finished.stat().st_mtime_ns == before
    assert (tmp_path / "stopped/gen/model_index.json").exists()


def test_nearest_is_told_from_another() -> None:
    real = torch.eye(5)
    assert train_gen.nearest_is_own(0.9 * real + 0.01, real).all()
    assert not train_gen.nearest_is_own(real.roll(1, 0), real).any()


def test_the_shipped_embeddings_are_rich(images: list[Image.Image]) -> None:
    """Spread wide in every direction, and no scene like another."""
    features = GenTarget.load("world/gen").encode(images)[:, 0]
    assert features.shape == (24, train_gen.WIDTH)
    assert 0.5 < features.std(0).mean() < 2
    assert torch.pdist(features).min() > 3
    energy = torch.linalg.svdvals(features - features.mean(0)).square()
    assert energy[0] < 0.3 * energy.sum()


def test_what_the_shipped_pipeline_draws_resembles_its_own_scene(images: list[Image.Image]) -> None:
    pytest.importorskip("diffusers")
    target = GenTarget.load("world/gen", head=True)
    target.draw = DrawSettings(steps=10, guidance=1.0)
    embeddings = target.encode(images)
    drawn = train_gen.draw(target, embeddings[:, 0], images)
    seen = train_gen.describe(target, [to_pil_image(image) for image in drawn])
    assert train_gen.nearest_is_own(seen, embeddings[:, 0]).float().mean() > 0.7
    # And to the eye: its colours at 7 × 7 places, far nearer than the mean image's or another scene's.
    truth = adaptive_avg_pool2d(torch.stack([to_tensor(image) for image in images]), 7)
    colours = adaptive_avg_pool2d(drawn, 7)
    spread = truth.var(0).mean()
    assert (colours - truth).square().mean() < 0.5 * spread
    assert (colours.roll(1, 0) - truth).square().mean() > spread


def _stop(*_: object) -> None:
    raise KeyboardInterrupt
