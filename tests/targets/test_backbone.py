"""Backbone targets: the patch features of any vision model of Hugging Face."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from PIL import Image

from innervision.errors import InnerVisionError
from innervision.targets.backbone import BackboneTarget
from tiny_experts import BACKBONES, save_tiny_backbone

NoiseImage = Callable[..., Image.Image]
VIT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 14,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("backbones")
    return {family: save_tiny_backbone(root / family, family=family) for family in BACKBONES}


@pytest.mark.parametrize(
    ("family", "encoder", "prefix"),
    [
        ("dinov2", "", 1),  # CLS
        ("dinov2_with_registers", "", 5),  # CLS and four registers
        ("vit", "", 1),
        ("clip", "vision_model", 1),
        ("siglip", "vision_model", 0),
        ("swin", "", 0),  # merged patches, fewer than the grid
    ],
)
def test_sequence_is_the_last_state_without_prefix_tokens(
    folders: dict[str, Path], noise: NoiseImage, family: str, encoder: str, prefix: int
) -> None:
    images = [noise(80, 50), noise(30, 90, seed=1)]
    target = BackboneTarget.load(str(folders[family]))
    model = hf.AutoModel.from_pretrained(folders[family]).eval()
    with torch.no_grad():
        states = model.get_submodule(encoder)(target.prepare(images)).last_hidden_state

    features = target.encode(images)

    assert features.shape == (2, target.num_tokens, target.width)
    torch.testing.assert_close(features, states[:, prefix:])


@pytest.mark.parametrize("family", ["resnet", "convnext"])
def test_map_becomes_tokens_row_by_row(folders: dict[str, Path], noise: NoiseImage, family: str) -> None:
    target = BackboneTarget.load(str(folders[family]), size=24)
    model = hf.AutoModel.from_pretrained(folders[family]).eval()
    pixels = target.prepare([noise(80, 50)])
    with torch.no_grad():
        grid = model(pixels).last_hidden_state  # (1, 16, 3, 3)

    features = target.encode(pixels)

    assert features.shape == (1, 9, 16)
    for row in range(3):
        for column in range(3):
            torch.testing.assert_close(features[0, 3 * row + column], grid[0, :, row, column])


@pytest.mark.parametrize(
    ("family", "side"), [("dinov2", 56), ("clip", 56), ("siglip", 56), ("swin", 16), ("convnext", 16)]
)
def test_whole_image_is_squashed_to_the_processors_size(folders: dict[str, Path], family: str, side: int) -> None:
    """Also where the processor itself would keep the aspect and crop the middle (DINOv2, CLIP, ConvNeXt)."""
    image = Image.new("RGB", (10 * side, side))
    image.paste((255, 255, 255), (0, 0, side, side))  # the first tenth is white

    pixels = BackboneTarget.load(str(folders[family])).prepare([image])

    assert pixels.shape == (1, 3, side, side)
    means = pixels.mean(dim=(0, 1, 2))  # by column
    black, white = means.min(), means.max()
    assert (means[: side // 10] > (black + white) / 2).all()
    assert (means[side // 10 + 2 :] < (black + white) / 2).all()


def test_squash_is_the_processors_own_where_it_can_squash(folders: dict[str, Path], noise: NoiseImage) -> None:
    images = [noise(80, 50), noise(30, 90)]
    for family in ("dinov2", "siglip"):
        processor = hf.AutoImageProcessor.from_pretrained(folders[family])
        size = {"height": 56, "width": 56}
        expected = processor(images, size=size, do_center_crop=False, return_tensors="pt")["pixel_values"]
        pixels = BackboneTarget.load(str(folders[family])).prepare(images)
        torch.testing.assert_close(pixels, expected, atol=0, rtol=0)


def test_size_is_a_choice_where_the_model_takes_it(folders: dict[str, Path], noise: NoiseImage) -> None:
    target = BackboneTarget.load(str(folders["dinov2_with_registers"]), size=84)
    assert target.num_tokens == 36
    assert target.encode([noise(20, 20)]).shape == (1, 36, 32)
    with pytest.raises(InnerVisionError, match="an image of 84 × 84 pixels does not become a sequence"):
        BackboneTarget.load(str(folders["siglip"]), size=84)


def test_of_clip_only_the_vision_encoder_stays(folders: dict[str, Path]) -> None:
    target = BackboneTarget.load(str(folders["clip"]))
    vision = hf.CLIPModel.from_pretrained(folders["clip"]).vision_model
    assert sum(p.numel() for p in target.parameters()) == sum(p.numel() for p in vision.parameters())


def test_model_that_only_autobackbone_knows(tmp_path: Path, noise: NoiseImage) -> None:
    config = hf.RTDetrResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    assert type(config) not in hf.MODEL_MAPPING
    torch.manual_seed(0)
    hf.RTDetrResNetBackbone(config).save_pretrained(tmp_path)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    target = BackboneTarget.load(str(tmp_path))
    backbone = hf.RTDetrResNetBackbone.from_pretrained(tmp_path).eval()
    pixels = target.prepare([noise(80, 50)])
    with torch.no_grad():
        expected = backbone(pixels).feature_maps[-1]
    torch.testing.assert_close(target.encode(pixels).mT.reshape(expected.shape), expected)


def test_weights_that_features_do_not_need_may_be_missing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = hf.ViTForImageClassification(hf.ViTConfig(**VIT, image_size=28))  # has no pooler
    classifier.save_pretrained(tmp_path)
    hf.ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    assert BackboneTarget.load(str(tmp_path)).num_tokens == 4


def test_expert_must_be_named() -> None:
    with pytest.raises(InnerVisionError, match="backbone=ID_OR_PATH"):
        BackboneTarget.load()


def test_text_model_is_refused(tmp_path: Path) -> None:
    config = hf.BertConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=10
    )
    hf.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(InnerVisionError, match=r"cannot load the expert.*image processor"):
        BackboneTarget.load(str(tmp_path))
    hf.ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(InnerVisionError, match=r"\(BertModel\) is not a vision model"):
        BackboneTarget.load(str(tmp_path))


def test_tokens_that_are_neither_patches_nor_prefix_are_refused(tmp_path: Path) -> None:
    config = hf.YolosConfig(**VIT, image_size=[28, 28], num_detection_tokens=20)
    hf.YolosModel(config).save_pretrained(tmp_path)
    hf.ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    with pytest.raises(InnerVisionError, match="21 of its 25 tokens are not patches"):
        BackboneTarget.load(str(tmp_path))


def test_processor_that_makes_something_else_than_an_image_is_refused(tmp_path: Path) -> None:
    config = hf.Siglip2VisionConfig(**VIT, num_patches=16)
    hf.Siglip2VisionModel(config).save_pretrained(tmp_path)
    hf.Siglip2ImageProcessor(patch_size=14, max_num_patches=16).save_pretrained(tmp_path)
    with pytest.raises(InnerVisionError, match="Siglip2ImageProcessor names no size"):
        BackboneTarget.load(str(tmp_path))
    with pytest.raises(InnerVisionError, match="cannot be a backbone"):
        BackboneTarget.load(str(tmp_path), size=56)
