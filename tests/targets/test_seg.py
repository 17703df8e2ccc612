"""The segmentation target: which features of OneFormer, of which pixels."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from innervision.targets.seg import SegTarget
from innervision.targets.target import Preparer
from tiny_experts import save_tiny_seg


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_seg(tmp_path_factory.mktemp("seg"))


@pytest.fixture(scope="module")
def target(folder: Path) -> SegTarget:
    return SegTarget.load(str(folder))


def test_features_are_the_originals(shared: Path, folder: Path, tmp_path: Path) -> None:
    """Weights in the layout of 4.41; these have no norm after the whole Swin, and no feature needs it."""
    golden = load_file(shared / "golden/oneformer/outputs.safetensors")
    shutil.copytree(shared / "golden/oneformer/tiny", tmp_path / "expert")
    shutil.copy(folder / "preprocessor_config.json", tmp_path / "expert")
    target = SegTarget.load(str(tmp_path / "expert"))

    features = target.encode(golden["pixel_values"])

    expected = golden["forward_features"]  # (1, 64, 24, 24)
    assert features.shape == (1, 576, 64)
    torch.testing.assert_close(features[0, 24 * 5 + 7], expected[0, :, 5, 7], atol=1e-4, rtol=0)
    torch.testing.assert_close(features.mT.reshape(expected.shape), expected, atol=1e-4, rtol=0)


def test_full_size_shape_and_parameters() -> None:
    config = hf.SwinConfig(
        embed_dim=192,
        depths=[2, 2, 18, 2],
        num_heads=[6, 12, 24, 48],
        window_size=12,
        image_size=384,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    with torch.device("meta"):
        backbone = hf.AutoBackbone.from_config(config)
    processor = hf.OneFormerImageProcessor(size={"shortest_edge": 800, "longest_edge": 1333})
    target = SegTarget(backbone, Preparer(processor, 768, 768, resize_again=True))
    with torch.device("meta"):
        features = target.encode(torch.zeros(2, 3, 800, 800))
    assert features.shape == (2, 576, 1536)
    assert (target.num_tokens, target.width) == (576, 1536)
    # Swin-L without its classifier as published (195.0 M) and a LayerNorm for each stage map
    stage_norms = 2 * (192 + 384 + 768 + 1536)
    assert sum(p.numel() for p in target.parameters()) - stage_norms == pytest.approx(195.0e6, rel=2e-3)


def test_image_is_squashed_to_768_and_enlarged_to_800(target: SegTarget, noise: Callable[..., Image.Image]) -> None:
    """Pillow resizes the same way but for rounding: at most two grey levels after two resizings."""
    image = noise(333, 120)
    pixels = target.prepare([image])
    resized = image.resize((768, 768), Image.Resampling.BILINEAR).resize((800, 800), Image.Resampling.BILINEAR)
    levels = (pixels[0].permute(1, 2, 0) * torch.tensor([0.229, 0.224, 0.225])) + torch.tensor([0.485, 0.456, 0.406])
    assert pixels.shape == (1, 3, 800, 800)
    assert np.abs(levels.numpy() * 255 - np.asarray(resized, dtype=float)).max() <= 2.01


def test_other_size_is_not_enlarged_and_a_map_of_few_cells_keeps_its_own(
    folder: Path, noise: Callable[..., Image.Image]
) -> None:
    target = SegTarget.load(str(folder), size=96)
    image = noise(50, 80)
    pixels = target.prepare([image])
    assert pixels.shape == (1, 3, 96, 96)
    assert (target.num_tokens, target.width) == (9, 64)  # a Swin of four stages makes a cell of 32 pixels
    features, last = target.encode([image]), target.module(pixels).feature_maps[-1]  # (1, 64, 3, 3)
    torch.testing.assert_close(features[0, 3 * 2 + 1], last[0, :, 2, 1], atol=0, rtol=0)
    assert SegTarget.load(str(folder), size=832).num_tokens == 576  # 26 × 26 are resized


def test_loads_offline_and_without_its_class_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "expert")
    (tmp_path / "expert/coco_panoptic.json").unlink()
    named = json.loads((folder / "preprocessor_config.json").read_text())
    assert named["repo_path"] == "shi-labs/oneformer_demo"

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", refuse)
    with pytest.raises(AssertionError, match="the Hub was asked"):  # the trap works
        hf.OneFormerImageProcessor.from_pretrained(tmp_path / "expert")
    assert SegTarget.load(str(tmp_path / "expert")).num_tokens == 576


def test_training_mode_of_the_holder_does_not_reach_the_expert(folder: Path) -> None:
    target = SegTarget.load(str(folder), size=64)  # its Swin has stochastic depth
    pixels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = target.encode(pixels)
    nn.ModuleList([target]).train()
    assert not any(module.training for module in target.modules())
    torch.testing.assert_close(target.encode(pixels), before, atol=0, rtol=0)


def test_only_the_backbone_stays(folder: Path, target: SegTarget) -> None:
    whole = hf.OneFormerForUniversalSegmentation.from_pretrained(folder)
    backbone = whole.model.pixel_level_module.encoder
    assert sum(p.numel() for p in target.parameters()) == sum(p.numel() for p in backbone.parameters())
