"""Tiny random experts, saved as folders the way their big brothers come from the Hub. Nothing is downloaded.

    target = DepthTarget.load(save_tiny_depth(tmp_path / "depth"))

Each function creates the folder, leaves the caller's random state as it was and returns the folder. The same
seed gives the same weights. Preprocessing files hold the real experts' settings, apart from CLIP's size.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers as hf
from tokenizers import pre_tokenizers

BACKBONES = ("dinov2", "dinov2_with_registers", "vit", "clip", "siglip", "swin", "resnet", "convnext")
"""The families that `save_tiny_backbone` knows."""

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def save_tiny_depth(folder: Path, seed: int = 0) -> Path:
    """Depth Anything V2: a DINOv2 of width 32 and four blocks, all of which the depth head reads."""
    config = hf.DepthAnythingConfig(
        backbone_config=hf.Dinov2Config(
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=518,
            patch_size=14,
            out_indices=[1, 2, 3, 4],
            reshape_hidden_states=False,
        ),
        reassemble_hidden_size=32,
        neck_hidden_sizes=[4, 6, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
    )
    with _seeded(seed):
        model = hf.DepthAnythingForDepthEstimation(config)
    model.save_pretrained(folder)
    processor = hf.DPTImageProcessor(
        size={"height": 518, "width": 518}, keep_aspect_ratio=True, ensure_multiple_of=14, **IMAGENET
    )
    processor.save_pretrained(folder)
    return folder


def save_tiny_seg(folder: Path, seed: int = 0, num_classes: int = 5) -> Path:
    """OneFormer: a Swin of widths 8 to 64, its class file and its tokenizer.

    As on the Hub, the image processor's file names a data set repository as the place of the class file, and
    the folder holds a copy.
    """
    config = hf.OneFormerConfig(
        backbone_config=hf.SwinConfig(
            embed_dim=8,
            depths=[1, 1, 2, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            mlp_ratio=2.0,
            image_size=64,
            drop_path_rate=0.3,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        num_labels=num_classes,
        num_queries=7,
        conv_dim=32,
        mask_dim=32,
        hidden_dim=32,
        encoder_feedforward_dim=24,
        encoder_layers=1,
        decoder_layers=3,
        dim_feedforward=24,
        num_attention_heads=2,
        query_dec_layers=1,
        text_encoder_width=32,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=600,
        text_encoder_proj_layers=1,
        text_encoder_n_ctx=4,
    )
    with _seeded(seed):
        model = hf.OneFormerForUniversalSegmentation(config)
    model.save_pretrained(folder)
    _clip_tokenizer().save_pretrained(folder)
    classes = {str(i): {"name": f"class {i}", "isthing": i % 2} for i in range(num_classes)}
    (folder / "coco_panoptic.json").write_text(json.dumps(classes))
    processor = hf.OneFormerImageProcessor(size={"shortest_edge": 800, "longest_edge": 1333}, **IMAGENET)
    settings = processor.to_dict() | {
        "class_info_file": "coco_panoptic.json",
        "repo_path": "shi-labs/oneformer_demo",
        "num_text": 3,
        "num_labels": num_classes,
        "ignore_index": 255,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def save_tiny_gen(folder: Path, seed: int = 0, *, whole: bool = False) -> Path:
    """Stable unCLIP: an image encoder of width 32 for 56 × 56 pixels, projected to 24.

    `whole` adds the rest of the pipeline, for images of 64 × 64. That imports diffusers, which takes seconds.
    """
    encoder_config = hf.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        projection_dim=24,
    )
    with _seeded(seed):
        encoder = hf.CLIPVisionModelWithProjection(encoder_config)
    feature_extractor = hf.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    encoder.save_pretrained(folder / "image_encoder")
    feature_extractor.save_pretrained(folder / "feature_extractor")
    if whole:
        _save_pipeline(folder, encoder, feature_extractor, seed)
    return folder


def save_random_inception(path: Path, seed: int = 0) -> Path:
    """The Inception v3 of the FID at its full size, as a file of random weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments: object, **options: object) -> None:
            pass

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with _seeded(seed):
        network = Untrained("inception-v3-compat", ["2048"], nothing)
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):  # as they start, the features of all images are nearly the same
                torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)
    return path


def save_tiny_backbone(folder: Path, seed: int = 0, family: str = "dinov2") -> Path:
    """A vision model of a family in `BACKBONES`, with the image processor that its family has.

    Features: dinov2, dinov2_with_registers and vit 16 tokens of width 32; clip and siglip the same (the whole
    model with its text encoder is saved); swin 4 of 16; resnet and convnext 4 of 16.
    """
    vit = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    text = vit | {"vocab_size": 64, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
    both = {"vision_config": vit, "text_config": text}
    windows = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "image_size": 16}
    stages = {"depths": [1, 1], "hidden_sizes": [8, 16]}
    crop = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}
    square = {"size": {"height": 56, "width": 56}}
    small = {"size": {"height": 16, "width": 16}}
    percent = {"size": {"shortest_edge": 16}, "crop_pct": 0.875}
    builders = {
        "dinov2": lambda: (hf.Dinov2Model(hf.Dinov2Config(**vit)), hf.BitImageProcessor(**crop)),
        "dinov2_with_registers": lambda: (
            hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**vit, num_register_tokens=4)),
            hf.BitImageProcessor(**crop),
        ),
        "vit": lambda: (hf.ViTModel(hf.ViTConfig(**vit)), hf.ViTImageProcessor(**square)),
        "clip": lambda: (hf.CLIPModel(hf.CLIPConfig(**both)), hf.CLIPImageProcessor(**crop)),
        "siglip": lambda: (hf.SiglipModel(hf.SiglipConfig(**both)), hf.SiglipImageProcessor(**square)),
        "swin": lambda: (hf.SwinModel(hf.SwinConfig(**windows)), hf.ViTImageProcessor(**small)),
        "resnet": lambda: (
            hf.ResNetModel(hf.ResNetConfig(embedding_size=8, layer_type="basic", **stages)),
            hf.ConvNextImageProcessor(**percent),
        ),
        "convnext": lambda: (
            hf.ConvNextModel(hf.ConvNextConfig(num_stages=2, **stages)),
            hf.ConvNextImageProcessor(**percent),
        ),
    }
    with _seeded(seed):
        model, processor = builders[family]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _save_pipeline(
    folder: Path,
    encoder: hf.CLIPVisionModelWithProjection,
    feature_extractor: hf.CLIPImageProcessor,
    seed: int,
) -> None:
    import diffusers
    from diffusers.pipelines.stable_diffusion import stable_unclip_image_normalizer as normalizer

    blocks = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
    tokenizer = _clip_tokenizer()
    text_config = hf.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    width = encoder.config.projection_dim
    with _seeded(seed + 1):
        pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
            feature_extractor=feature_extractor,
            image_encoder=encoder,
            image_normalizer=normalizer.StableUnCLIPImageNormalizer(width),
            image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
            tokenizer=tokenizer,
            text_encoder=hf.CLIPTextModel(text_config),
            unet=diffusers.UNet2DConditionModel(
                sample_size=32,
                cross_attention_dim=32,
                attention_head_dim=4,
                down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
                up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
                class_embed_type="projection",
                projection_class_embeddings_input_dim=2 * width,
                **blocks,
            ),
            scheduler=diffusers.DDIMScheduler(
                beta_schedule="scaled_linear",
                prediction_type="v_prediction",
                set_alpha_to_one=False,
                steps_offset=1,
            ),
            vae=diffusers.AutoencoderKL(
                down_block_types=["DownEncoderBlock2D"] * 2,
                up_block_types=["UpDecoderBlock2D"] * 2,
                latent_channels=4,
                sample_size=64,
                **blocks,
            ),
        )
    pipeline.save_pretrained(folder)


def _clip_tokenizer() -> hf.CLIPTokenizer:
    """CLIP's tokenizer without merges: a token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return hf.CLIPTokenizer(vocab={entry: i for i, entry in enumerate(entries)}, merges=[], model_max_length=77)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
