"""Depth Anything V2 in the layout of its authors: one file of weights, or inside of a probe checkpoint.

Everything that the file does not say (the blocks that the depth head reads, the width of an attention head) is as
in the published encoders: https://github.com/DepthAnything/Depth-Anything-V2
"""

import re
from typing import Any

from torch import Tensor
from transformers import BaseImageProcessor, DepthAnythingConfig, Dinov2Config, DPTImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from innervision.original.shapes import count_parts

TAPPED_BLOCKS = {24: [5, 12, 18, 24]}
"""The blocks whose output the depth head reads, counted from 1, by the number of blocks; else every quarter."""

HEADS = {384: 6, 768: 12, 1024: 16, 1536: 24}
"""Attention heads by the encoder's width, which the shapes do not tell; else two, as in the tiny models of tests."""

KEYS = (
    (r"^pretrained\.cls_token$", "backbone.embeddings.cls_token"),
    (r"^pretrained\.mask_token$", "backbone.embeddings.mask_token"),
    (r"^pretrained\.pos_embed$", "backbone.embeddings.position_embeddings"),
    (r"^pretrained\.patch_embed\.proj\.", "backbone.embeddings.patch_embeddings.projection."),
    (r"^pretrained\.norm\.", "backbone.layernorm."),
    (r"^pretrained\.blocks\.(\d+)\.attn\.proj\.", r"backbone.encoder.layer.\1.attention.output.dense."),
    (r"^pretrained\.blocks\.(\d+)\.ls(\d)\.gamma$", r"backbone.encoder.layer.\1.layer_scale\2.lambda1"),
    (r"^pretrained\.blocks\.(\d+)\.mlp\.w12\.", r"backbone.encoder.layer.\1.mlp.weights_in."),
    (r"^pretrained\.blocks\.(\d+)\.mlp\.w3\.", r"backbone.encoder.layer.\1.mlp.weights_out."),
    (r"^pretrained\.blocks\.(\d+)\.(norm\d|mlp\.fc\d)\.", r"backbone.encoder.layer.\1.\2."),
    (r"^depth_head\.projects\.(\d)\.", r"neck.reassemble_stage.layers.\1.projection."),
    (r"^depth_head\.resize_layers\.(\d)\.", r"neck.reassemble_stage.layers.\1.resize."),
    (r"^depth_head\.scratch\.output_conv1\.", "head.conv1."),
    (r"^depth_head\.scratch\.output_conv2\.0\.", "head.conv2."),
    (r"^depth_head\.scratch\.output_conv2\.2\.", "head.conv3."),
)
"""From the authors' names to Hugging Face's, for those that need no more than another name."""

FUSION = (
    (r"out_conv\.", "projection."),
    (r"resConfUnit(\d)\.conv(\d)\.", r"residual_layer\1.convolution\2."),
)


def convert(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the weights the names that Hugging Face's published Depth Anything V2 has."""
    converted = {}
    for key, value in weights.items():
        if block := re.match(r"pretrained\.blocks\.(\d+)\.attn\.qkv\.(\w+)$", key):
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                converted[f"backbone.encoder.layer.{block[1]}.attention.attention.{name}.{block[2]}"] = part
        elif level := re.match(r"depth_head\.scratch\.layer(\d)_rn\.(\w+)$", key):
            converted[f"neck.convs.{int(level[1]) - 1}.{level[2]}"] = value
        elif stage := re.match(r"depth_head\.scratch\.refinenet(\d)\.(.+)$", key):
            converted[f"neck.fusion_stage.layers.{4 - int(stage[1])}.{_rename(stage[2], FUSION)}"] = value
        else:
            converted[_rename(key, KEYS)] = value
    return converted


def make_config(weights: dict[str, Tensor]) -> DepthAnythingConfig:
    """Tell the size of the encoder and of the depth head from the shapes of their weights."""
    width = weights["pretrained.pos_embed"].shape[-1]
    patch = weights["pretrained.patch_embed.proj.weight"].shape[-1]
    side = round((weights["pretrained.pos_embed"].shape[1] - 1) ** 0.5)
    depth = count_parts(weights, "pretrained.blocks")
    swiglu = "pretrained.blocks.0.mlp.w12.weight" in weights
    taps: Any = TAPPED_BLOCKS.get(depth, [depth * quarter // 4 for quarter in (1, 2, 3, 4)])
    backbone = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=HEADS.get(width, 2),
        mlp_ratio=4 if swiglu else weights["pretrained.blocks.0.mlp.fc1.weight"].shape[0] // width,
        use_swiglu_ffn=swiglu,
        image_size=side * patch,
        patch_size=patch,
        out_indices=taps,  # type: ignore[call-arg]  # its annotation has the private name
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    return DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=patch,
        reassemble_hidden_size=width,
        neck_hidden_sizes=[weights[f"depth_head.projects.{level}.weight"].shape[0] for level in range(4)],
        fusion_hidden_size=weights["depth_head.scratch.layer1_rn.weight"].shape[0],
        head_hidden_size=weights["depth_head.scratch.output_conv2.0.weight"].shape[0],
    )


def make_processor(config: DepthAnythingConfig) -> BaseImageProcessor:
    """Make the published image processor."""
    return DPTImageProcessor(
        size={"height": 518, "width": 518},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )


def _rename(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, name in rules:
        if re.match(pattern, key):
            return re.sub(pattern, name, key)
    return key
