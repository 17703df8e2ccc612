"""OneFormer as a probe checkpoint holds it: its configuration from the shapes of its weights.

Everything that shapes do not tell (activations, strides, the norm's place and size) is as in the published
`shi-labs/oneformer_coco_swin_large`, whose values are OneFormer's own defaults.
"""

from torch import Tensor
from transformers import BaseImageProcessor, OneFormerConfig, OneFormerImageProcessor, SwinConfig

from innervision.original.shapes import count_parts

LEVELS, POINTS = 3, 4
"""Of the deformable attention of the pixel decoder: maps, and places per map and head."""


def make_config(weights: dict[str, Tensor]) -> OneFormerConfig:
    """Tell the size of the Swin and of the decoders.

    Raises:
        KeyError: a weight that tells it is missing.
    """
    shape = {key: tuple(value.shape) for key, value in weights.items()}
    pixel, decoder = "pixel_level_module.decoder", "transformer_module.decoder"
    attention = f"{pixel}.encoder.layers.0.self_attn.sampling_offsets.weight"
    hidden = shape["transformer_module.queries_embedder.weight"]
    return OneFormerConfig(
        backbone_config=_make_swin_config(weights),
        # less "nothing"; the base class takes it, which its annotation does not tell
        num_labels=shape[f"{decoder}.class_embed.weight"][0] - 1,  # type: ignore[call-arg]
        num_queries=hidden[0],
        hidden_dim=hidden[1],
        conv_dim=shape[attention][1],
        mask_dim=shape[f"{pixel}.mask_projection.weight"][0],
        num_attention_heads=shape[attention][0] // (2 * LEVELS * POINTS),
        encoder_layers=count_parts(weights, f"{pixel}.encoder.layers"),
        encoder_feedforward_dim=shape[f"{pixel}.encoder.layers.0.fc1.weight"][0],
        decoder_layers=count_parts(weights, f"{decoder}.layers") + 1,  # it is counted with the first prediction
        dim_feedforward=shape[f"{decoder}.layers.0.ffn.linear1.weight"][0],
        query_dec_layers=count_parts(weights, f"{decoder}.query_transformer.decoder.layers"),
        task_seq_len=shape["task_encoder.task_mlp.layers.0.0.weight"][1],
        enforce_input_proj=any(key.startswith("transformer_module.input_projections.") for key in weights),
    )


def make_processor(config: OneFormerConfig) -> BaseImageProcessor:
    """Make the published image processor: shorter side 800, longer one at most 1333, bilinear."""
    return OneFormerImageProcessor()  # these are its defaults


def _make_swin_config(weights: dict[str, Tensor]) -> SwinConfig:
    shape = {key: tuple(value.shape) for key, value in weights.items()}
    encoder = "pixel_level_module.encoder"
    patches = shape[f"{encoder}.embeddings.patch_embeddings.projection.weight"]
    stages = count_parts(weights, f"{encoder}.encoder.layers")
    first = f"{encoder}.encoder.layers.{{}}.blocks.0"
    # one row for each offset between two cells of a window, one column for each head
    tables = [shape[f"{first.format(stage)}.attention.self.relative_position_bias_table"] for stage in range(stages)]
    return SwinConfig(
        embed_dim=patches[0],
        patch_size=patches[-1],
        depths=[count_parts(weights, f"{encoder}.encoder.layers.{stage}.blocks") for stage in range(stages)],
        num_heads=[heads for _, heads in tables],
        window_size=(round(tables[0][0] ** 0.5) + 1) // 2,
        mlp_ratio=shape[f"{first.format(0)}.intermediate.dense.weight"][0] / patches[0],
        image_size=384,  # of the Swin's own training; any image can be given
        out_features=[f"stage{stage + 1}" for stage in range(stages)],  # type: ignore[call-arg]  # a property
    )
