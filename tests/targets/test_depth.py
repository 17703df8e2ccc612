"""The depth target: which features of Depth Anything, of which pixels."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from innervision.errors import InnerVisionError
from innervision.targets.depth import DepthTarget
from innervision.targets.target import Preparer
from tiny_experts import save_tiny_depth


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_depth(tmp_path_factory.mktemp("depth"))


@pytest.fixture(scope="module")
def target(folder: Path) -> DepthTarget:
    return DepthTarget.load(str(folder))


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "golden/dav2/tiny.safetensors")


def dinov2_state(original: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename DINOv2's original weights to Hugging Face's, splitting the joint query-key-value matrix."""
    names = {
        "norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.output.dense",
        "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
        "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1",
    }  # fmt: skip
    state = {
        "embeddings.cls_token": original["cls_token"],
        "embeddings.mask_token": original["mask_token"],
        "embeddings.position_embeddings": original["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": original["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": original["patch_embed.proj.bias"],
        "layernorm.weight": original["norm.weight"],
        "layernorm.bias": original["norm.bias"],
    }
    for key, value in original.items():
        if not key.startswith("blocks."):
            continue
        _, block, rest = key.split(".", 2)
        if rest.startswith("attn.qkv"):
            for part, chunk in zip(("query", "key", "value"), value.chunk(3), strict=True):
                name = f"encoder.layer.{block}.attention.attention.{part}.{rest.rsplit('.', 1)[1]}"
                state[name] = chunk
        else:
            old = next(old for old in names if rest.startswith(old))
            state[f"encoder.layer.{block}.{rest.replace(old, names[old])}"] = value
    return state


def target_of(state: dict[str, Tensor], image_size: int, folder: Path) -> DepthTarget:
    """Give a tiny Depth Anything this backbone, in a folder as on the Hub, and load it as a target."""
    save_tiny_depth(folder)
    config = json.loads((folder / "config.json").read_text())
    config["backbone_config"]["image_size"] = image_size
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    head = {key: value for key, value in weights.items() if not key.startswith("backbone.")}
    backbone = {f"backbone.{key}": value.contiguous() for key, value in state.items()}
    save_file(head | backbone, folder / "model.safetensors", metadata={"format": "pt"})
    return DepthTarget.load(str(folder))


def original_of(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "param.pretrained."
    return {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}


def test_features_are_the_originals_where_position_embeddings_are_resized_as_it_does(
    golden: dict[str, Tensor], tmp_path: Path
) -> None:
    """Exact but for the order of summation, so within 1e-4 of values up to 3.5.

    The original resizes the 37 × 37 position embeddings by the factor 24.1/37, Hugging Face to 24 × 24. Here
    they are resized beforehand as in the original, so that Hugging Face leaves them alone.
    """
    original = original_of(golden)
    position = original["pos_embed"]
    grid = position[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    scale = (24.1 / 37, 24.1 / 37)
    resized = nn.functional.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
    original["pos_embed"] = torch.cat([position[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
    target = target_of(dinov2_state(original), 336, tmp_path)

    features = target.encode(golden["image_tensor"])

    torch.testing.assert_close(features, golden["feat_last_patch"], atol=1e-4, rtol=0)


def test_features_with_hugging_faces_position_embeddings_are_as_close_as_known(
    golden: dict[str, Tensor], tmp_path: Path
) -> None:
    target = target_of(dinov2_state(original_of(golden)), 518, tmp_path)
    features, expected = target.encode(golden["image_tensor"]), golden["feat_last_patch"]
    # both numbers were measured with the original code
    assert nn.functional.cosine_similarity(features.flatten(), expected.flatten(), dim=0) == pytest.approx(
        0.99958, abs=2e-5
    )
    assert (features - expected).abs().max() == pytest.approx(0.29134, abs=1e-3)


def test_features_are_of_the_last_tapped_block_after_the_norm_without_cls() -> None:
    config = hf.Dinov2Config(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        out_indices=[1, 2],
        reshape_hidden_states=False,
    )
    torch.manual_seed(0)
    backbone = hf.AutoBackbone.from_config(config).eval()
    model = hf.Dinov2Model(config).eval()
    model.load_state_dict(backbone.state_dict())
    pixels = torch.randn(2, 3, 28, 28)
    second = model(pixels, output_hidden_states=True).hidden_states[2]

    target = DepthTarget(backbone, Preparer(hf.DPTImageProcessor(), 28, 28))

    assert (target.num_tokens, target.width) == (4, 16)
    torch.testing.assert_close(target.encode(pixels), model.layernorm(second)[:, 1:])


def test_full_size_shape_and_parameters() -> None:
    config = hf.Dinov2Config(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=518,
        patch_size=14,
        out_indices=[5, 12, 18, 24],
        reshape_hidden_states=False,
    )
    with torch.device("meta"):
        target = DepthTarget(hf.AutoBackbone.from_config(config), Preparer(hf.DPTImageProcessor(), 336, 336))
        features = target.encode(torch.zeros(2, 3, 336, 336))
    assert features.shape == (2, 576, 1024)
    assert (target.num_tokens, target.width) == (576, 1024)
    assert sum(p.numel() for p in target.parameters()) == 304_368_640  # DINOv2 ViT-L/14


def test_image_is_squashed_as_the_experts_processor_does_it(
    folder: Path, target: DepthTarget, noise: Callable[..., Image.Image]
) -> None:
    images = [noise(90, 50), noise(400, 700), noise(336, 336)]
    processor = hf.AutoImageProcessor.from_pretrained(folder)
    expected = processor(
        images,
        size={"height": 336, "width": 336},
        keep_aspect_ratio=False,
        ensure_multiple_of=1,
        return_tensors="pt",
    )["pixel_values"]
    torch.testing.assert_close(target.prepare(images), expected, atol=0, rtol=0)


def test_whole_image_counts(target: DepthTarget) -> None:
    wide = Image.new("RGB", (672, 84))
    wide.paste((255, 255, 255), (0, 0, 336, 84))
    pixels = target.prepare([wide])
    assert pixels.shape == (1, 3, 336, 336)
    assert (pixels[..., :160] > 2).all()
    assert (pixels[..., 176:] < -1.7).all()


def test_channels_are_rgb(target: DepthTarget) -> None:
    pixels = target.prepare([Image.new("RGB", (20, 30), (255, 0, 0))])
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0 - 0.406) / 0.225]
    torch.testing.assert_close(pixels[0, :, 100, 100], torch.tensor(expected), atol=1e-4, rtol=0)


def test_other_size_gives_other_grid(folder: Path, noise: Callable[..., Image.Image]) -> None:
    target = DepthTarget.load(str(folder), size=70)
    assert target.prepare([noise(40, 30)]).shape == (1, 3, 70, 70)
    assert target.num_tokens == 25
    assert target.encode([noise(40, 30)]).shape == (1, 25, 32)


def test_size_that_does_not_divide_into_patches_is_refused(folder: Path) -> None:
    with pytest.raises(InnerVisionError, match=r"340 × 340 pixels do not divide into patches of 14"):
        DepthTarget.load(str(folder), size=340)


def test_only_the_backbone_stays(folder: Path, target: DepthTarget) -> None:
    whole = hf.DepthAnythingForDepthEstimation.from_pretrained(folder)
    assert sum(p.numel() for p in target.parameters()) == sum(p.numel() for p in whole.backbone.parameters())
