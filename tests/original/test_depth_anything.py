"""Depth Anything V2 in its authors' layout, compared with what the original class computed."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from innervision.checkpoints.layout import ForeignExpert
from innervision.errors import InnerVisionError
from innervision.original.depth_anything import make_config
from innervision.original.held_experts import read_held_expert
from innervision.targets.depth import DepthTarget


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "golden/dav2/tiny.safetensors")


@pytest.fixture
def weights(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("param."): value for key, value in golden.items() if key.startswith("param.")}


def read(path: Path) -> ForeignExpert:
    expert = read_held_expert("depth", str(path))
    assert expert is not None
    return expert


def published(width: int, depth: int, swiglu: bool = False) -> dict[str, Tensor]:
    """The names and shapes that tell the size of an encoder, without memory behind them."""
    meta = {"device": "meta"}
    mlp = "mlp.w12" if swiglu else "mlp.fc1"
    weights = {
        "pretrained.pos_embed": torch.empty(1, 1370, width, **meta),
        "pretrained.patch_embed.proj.weight": torch.empty(width, 3, 14, 14, **meta),
        "depth_head.scratch.layer1_rn.weight": torch.empty(64, 48, 3, 3, **meta),
        "depth_head.scratch.output_conv2.0.weight": torch.empty(32, 32, 3, 3, **meta),
    }
    for block in range(depth):
        weights[f"pretrained.blocks.{block}.{mlp}.weight"] = torch.empty(4 * width, width, **meta)
    for level, channels in enumerate((48, 96, 192, 384)):
        weights[f"depth_head.projects.{level}.weight"] = torch.empty(channels, width, 1, 1, **meta)
    return weights


@pytest.mark.parametrize(
    ("width", "depth", "heads", "taps"),
    [
        (384, 12, 6, [3, 6, 9, 12]),
        (768, 12, 12, [3, 6, 9, 12]),
        (1024, 24, 16, [5, 12, 18, 24]),
        (1536, 40, 24, [10, 20, 30, 40]),
    ],
)
def test_the_size_of_the_encoder_is_told_from_the_shapes(width: int, depth: int, heads: int, taps: list[int]) -> None:
    config = make_config(published(width, depth, swiglu=width == 1536))
    backbone = config.backbone_config
    assert (backbone.hidden_size, backbone.num_hidden_layers, backbone.num_attention_heads) == (width, depth, heads)
    assert [int(name.removeprefix("stage")) for name in backbone.out_features] == taps
    assert backbone.use_swiglu_ffn == (width == 1536)
    assert config.neck_hidden_sizes == [48, 96, 192, 384]


def test_features_of_all_tapped_blocks_and_depth_agree_with_the_original(
    golden: dict[str, Tensor], weights: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "tiny.pth")
    model = read(tmp_path / "tiny.pth").model
    positions = model.backbone.embeddings.position_embeddings
    grid = positions[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, scale_factor=24.1 / 37, mode="bicubic")  # the original's rule
    with torch.no_grad():
        positions.data = torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
        features = model.backbone(golden["image_tensor"]).feature_maps
        depth = model.head(model.neck(features, 24, 24), 24, 24)
        from_last = model.head(model.neck([features[-1]] * 4, 24, 24), 24, 24)
    for number, feature in enumerate(features):
        torch.testing.assert_close(feature[:, 1:], golden[f"feat.{number}"], atol=1e-4, rtol=0)
    torch.testing.assert_close(depth, golden["depth_real_4feats"], atol=1e-4, rtol=0)
    torch.testing.assert_close(from_last, golden["depth_4xlast"], atol=1e-4, rtol=0)


def test_a_file_and_a_probe_checkpoint_that_holds_it_are_the_same_expert(shared: Path) -> None:
    folder = shared / "golden/probe_ckpt"
    image = Image.open(folder / "image0.png").convert("RGB")
    alone = DepthTarget.load(str(folder / "tiny_dav2.pth"), device="cpu")
    inside = DepthTarget.load(str(folder / "probe_depth_tiny-llava-llama3"), device="cpu")
    assert (alone.num_tokens, alone.width) == (576, 32)
    assert torch.equal(alone.encode([image]), inside.encode([image]))
    assert alone.expert == "tiny_dav2.pth"
    assert alone.revision is not None
    assert alone.revision.startswith("sha256:")


def test_another_file_of_the_same_name_has_another_revision(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "tiny.pth")
    before = DepthTarget.load(str(tmp_path / "tiny.pth"), device="cpu").revision
    weights["pretrained.norm.bias"] += 1
    torch.save(weights, tmp_path / "tiny.pth")
    assert DepthTarget.load(str(tmp_path / "tiny.pth"), device="cpu").revision != before


def test_missing_extra_and_misshapen_weights_are_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "tiny.pth"

    def refused(changed: dict[str, Tensor]) -> str:
        torch.save(changed, path)
        with pytest.raises(InnerVisionError) as error:
            read(path)
        return str(error.value)

    without = {key: value for key, value in weights.items() if key != "pretrained.blocks.2.norm1.bias"}
    assert "layer.2.norm1.bias" in refused(without)
    assert "pretrained.pos_embed" in refused({"other": torch.zeros(1)})
    assert "head.other" in refused(weights | {"head.other": torch.zeros(1)})
    assert "layernorm.weight" in refused(weights | {"pretrained.norm.weight": torch.zeros(5)})
