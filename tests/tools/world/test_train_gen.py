"""How the world's image generator is trained and measured."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from tools.world.training import load_scenes

from innervision.targets.gen import GenTarget
from tools.world import train_gen


def test_a_few_steps_make_a_pipeline_that_loads_offline(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    scenes = load_scenes(tmp_path / "scenes", "train", 64, progress=False)
    train_gen.train(tmp_path, scenes, 0, effort=0, progress=False)
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(
        tmp_path / "gen", dtype=torch.float32, local_files_only=True
    )
    images = [Image.fromarray(image) for image in scenes.images]
    drawn = pipeline(image=images[:2], num_inference_steps=2, output_type="pt").images
    assert drawn.shape == (2, 3, 56, 56)
    assert drawn.isfinite().all()
    # The normaliser holds what the encoder gives for the training scenes.
    embeddings = GenTarget.load(str(tmp_path / "gen")).encode(images)[:, 0]
    normalizer = pipeline.image_normalizer
    torch.testing.assert_close(normalizer.mean[0], embeddings.mean(0), atol=0.02, rtol=0.02)
    torch.testing.assert_close(normalizer.std[0], embeddings.std(0), atol=0.02, rtol=0.02)


def test_nearest_is_told_from_another() -> None:
    real = torch.eye(5)
    assert train_gen.nearest_is_own(0.9 * real + 0.01, real).all()
    assert not train_gen.nearest_is_own(real.roll(1, 0), real).any()
