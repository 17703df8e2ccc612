"""The image encoder of Stable unCLIP as a probe checkpoint holds it: its configuration from the shapes of its weights.

Shapes do not tell attention heads and activation; they are as in the published CLIP models of the same width.
"""

from torch import Tensor
from transformers import BaseImageProcessor, CLIPImageProcessor, CLIPVisionConfig

from innervision.original.shapes import count_parts

HEADS = {768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
"""Attention heads by width (ViT-B, L, H, g and bigG); else two, as in the tiny models of tests."""

OPENCLIP_WIDTH = 1280
"""From this width on, published encoders are OpenCLIP's, with GELU; smaller ones OpenAI's, with its quick form."""


def make_config(weights: dict[str, Tensor]) -> CLIPVisionConfig:
    """Tell the size of the encoder.

    Raises:
        KeyError: a weight that tells it is missing.
    """
    model = "vision_model"
    patches = weights[f"{model}.embeddings.patch_embedding.weight"].shape
    width, patch = patches[0], patches[-1]
    side = round((weights[f"{model}.embeddings.position_embedding.weight"].shape[0] - 1) ** 0.5)
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=weights[f"{model}.encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=count_parts(weights, f"{model}.encoder.layers"),
        num_attention_heads=HEADS.get(width, 2),
        image_size=side * patch,
        patch_size=patch,
        projection_dim=weights["visual_projection.weight"].shape[0],
        hidden_act="gelu" if width >= OPENCLIP_WIDTH else "quick_gelu",
    )


def make_processor(config: CLIPVisionConfig) -> BaseImageProcessor:
    """Make CLIP's published image processor for the encoder's size."""
    size: int = config.image_size  # type: ignore[assignment]  # one number, see `make_config`
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
