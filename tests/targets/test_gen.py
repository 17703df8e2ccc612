"""The generation target: the image embedding of Stable unCLIP."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from PIL import Image

from innervision.errors import InnerVisionError
from innervision.targets.gen import GenTarget
from innervision.targets.target import Preparer
from tiny_experts import save_tiny_gen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gen(tmp_path_factory.mktemp("gen"))


@pytest.fixture(scope="module")
def target(folder: Path) -> GenTarget:
    return GenTarget.load(str(folder))


def test_embedding_is_the_pipelines(tmp_path: Path, noise: Callable[..., Image.Image]) -> None:
    diffusers = pytest.importorskip("diffusers")
    folder = save_tiny_gen(tmp_path, whole=True)
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(folder)
    images = [noise(56, 56), noise(56, 56)]  # the size at which the pipeline crops nothing
    pixels = pipeline.feature_extractor(images=images, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = pipeline.image_encoder(pixels).image_embeds  # as in its `_encode_image`

    features = GenTarget.load(str(folder)).encode(images)

    assert features.shape == (2, 1, 24)
    torch.testing.assert_close(features[:, 0], expected)


def test_full_size_shape_and_parameters() -> None:
    config = hf.CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        projection_dim=1024,
    )
    with torch.device("meta"):
        target = GenTarget(hf.CLIPVisionModelWithProjection(config), Preparer(hf.CLIPImageProcessor(), 224, 224))
        features = target.encode(torch.zeros(2, 3, 224, 224))
    assert features.shape == (2, 1, 1024)
    assert (target.num_tokens, target.width) == (1, 1024)
    assert sum(p.numel() for p in target.parameters()) == 632_076_800  # OpenCLIP ViT-H/14, visual part


def test_whole_image_is_squashed_and_not_cropped(
    folder: Path, target: GenTarget, noise: Callable[..., Image.Image]
) -> None:
    images = [noise(150, 60), noise(40, 90)]
    processor = hf.CLIPImageProcessor.from_pretrained(folder / "feature_extractor")
    expected = processor(
        images, size={"height": 56, "width": 56}, do_center_crop=False, return_tensors="pt"
    ).pixel_values
    torch.testing.assert_close(target.prepare(images), expected, atol=0, rtol=0)


def test_loads_without_diffusers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, noise: Callable[..., Image.Image]
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)  # any import of it fails
    assert GenTarget.load(str(folder)).encode([noise(30, 30)]).shape == (1, 1, 24)


def test_size_that_the_encoder_does_not_take_is_refused(folder: Path) -> None:
    with pytest.raises(InnerVisionError, match=r"takes 56 × 56 pixels, not 70 × 70"):
        GenTarget.load(str(folder), size=70)


def test_folder_without_image_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "feature_extractor", tmp_path / "feature_extractor")
    with pytest.raises(InnerVisionError, match="cannot load the expert"):
        GenTarget.load(str(tmp_path))


def test_folder_without_feature_extractor_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "image_encoder", tmp_path / "image_encoder")
    with pytest.raises(InnerVisionError, match="cannot load the expert"):
        GenTarget.load(str(tmp_path))
