"""The models of the benchmark, built from configurations with random weights: nothing is downloaded."""

from dataclasses import dataclass

import torch
import transformers as hf
from torch import Tensor

from innervision.config import ProbeSettings, TrainSettings
from innervision.data.loader import Batch
from innervision.mllm import MLLM, Inputs
from innervision.probes import ProbeBank
from innervision.targets.depth import DepthTarget
from innervision.targets.gen import GenTarget
from innervision.targets.seg import SegTarget
from innervision.targets.target import Preparer, Target
from innervision.train import Learner

TEXT_TOKENS = 20
"""What LLaVA's template and "Describe the image in two lines." come to."""


@dataclass(frozen=True)
class Size:
    """The full-size models with all widths and depths divided, so that the shares of the work stay as they are.

    Images, patches and with them the numbers of tokens are never divided.
    """

    narrower: int
    """Divides every width: of the states, of the features, of the feed-forward parts, of the depth head."""
    shallower: int
    """Divides the number of layers of the decoder, the vision tower and the experts."""
    batch: int
    """Images that go through the models at once."""

    @property
    def num_layers(self) -> int:
        """Of the decoder."""
        return 32 // self.shallower


@dataclass
class Bench:
    """What a step needs, on one device."""

    mllm: MLLM
    targets: list[Target]
    depth_model: hf.DepthAnythingForDepthEstimation
    """The depth expert with its head; `targets` has its backbone."""
    banks: dict[str, ProbeBank]
    layers: list[int]
    learner: Learner
    batch: Batch


def build(size: Size, device: torch.device, every: int = 1) -> Bench:
    """Build LLaVA-1.5-7B, Depth Anything V2-L, OneFormer's Swin-L, CLIP ViT-H and probes, at a size.

    On an accelerator the MLLM is in bfloat16 and the experts run under autocast, as in `innervision train`.

    Args:
        size: of the models.
        device: where; "meta" builds without memory.
        every: probe only each layer whose number is a multiple of it.
    """
    torch.manual_seed(0)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    with device:
        model = hf.AutoModelForImageTextToText.from_config(llava(size), dtype=dtype)
        mllm = MLLM(model, None, name="LLaVA-1.5")  # type: ignore[arg-type]  # the inputs are made here
        depth_model = hf.DepthAnythingForDepthEstimation(depth_anything(size)).eval().requires_grad_(False)
        experts = [
            (DepthTarget, depth_model.backbone, DepthTarget.size),
            (SegTarget, hf.SwinBackbone(swin(size)), 800),
            (GenTarget, hf.CLIPVisionModelWithProjection(clip(size)), 224),
        ]
        processor = hf.CLIPImageProcessor()  # not used: the pixels are made here
        targets = [kind(module, Preparer(processor, side, side), dtype=dtype) for kind, module, side in experts]
        layers = list(range(every, size.num_layers + 1, every))
        probe = ProbeSettings(dim_head=32 // size.narrower)
        banks = {target.name: ProbeBank(mllm, target, layers, probe) for target in targets}
        pixels = {
            target.name: torch.randn(size.batch, 3, target.preparer.height, target.preparer.width) for target in targets
        }
        batch = Batch([str(i) for i in range(size.batch)], make_inputs(mllm, size.batch), pixels, bad=[])
    settings = TrainSettings(mllm="", images="", out="")
    learner = Learner(mllm, targets, banks, layers, settings, num_steps=10_000)
    return Bench(mllm, targets, depth_model, banks, layers, learner, batch)


def make_inputs(mllm: MLLM, batch: int) -> Inputs:
    """Make random pixels and text on PyTorch's current device, as LLaVA's processor would lay them out."""
    config = mllm.model.config
    side = config.vision_config.image_size
    num_patches = (side // config.vision_config.patch_size) ** 2
    num_tokens = num_patches + TEXT_TOKENS
    image_mask = torch.zeros(batch, num_tokens, dtype=torch.bool)
    image_mask[:, 5 : 5 + num_patches] = True
    ids = torch.randint(config.image_token_index, (batch, num_tokens))
    tensors: dict[str, Tensor] = {
        "input_ids": ids.masked_fill(image_mask, config.image_token_index),
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(batch, 3, side, side),
    }
    grid = torch.full((batch, num_tokens, 2), float("nan"))
    return Inputs(tensors, torch.ones_like(image_mask), image_mask, grid, torch.ones(batch, dtype=torch.int64))


def llava(size: Size) -> hf.LlavaConfig:
    """LLaVA-1.5-7B: CLIP ViT-L at 336 pixels and Vicuna-7B. The last token of the vocabulary is the image's.

    The vocabulary is divided too, so that the logits' share of the work stays as it is.
    """
    vocabulary = 32_064 // size.narrower // size.shallower
    vision = hf.CLIPVisionConfig(
        hidden_size=1024 // size.narrower,
        intermediate_size=4096 // size.narrower,
        num_hidden_layers=24 // size.shallower,
        num_attention_heads=16 // size.narrower,
        image_size=336,
        patch_size=14,
    )
    text = hf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=4096 // size.narrower,
        intermediate_size=11_008 // size.narrower,
        num_hidden_layers=size.num_layers,
        num_attention_heads=32 // size.narrower,
        max_position_embeddings=4096,
    )
    return hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=vocabulary - 1)


def depth_anything(size: Size) -> hf.DepthAnythingConfig:
    """Depth Anything V2-L, its DPT head included."""
    depth = 24 // size.shallower
    backbone = hf.Dinov2Config(
        hidden_size=1024 // size.narrower,
        num_hidden_layers=depth,
        num_attention_heads=16 // size.narrower,
        image_size=518,
        patch_size=14,
        out_indices=[5 * depth // 24, 12 * depth // 24, 18 * depth // 24, depth],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    return hf.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=1024 // size.narrower,
        neck_hidden_sizes=[channels // size.narrower for channels in (256, 512, 1024, 1024)],
        fusion_hidden_size=256 // size.narrower,
        head_hidden_size=32 // size.narrower,
    )


def swin(size: Size) -> hf.SwinConfig:
    """The backbone of OneFormer COCO Swin-L, which sees 800 × 800 pixels."""
    heads = max(1, 6 // size.narrower)
    return hf.SwinConfig(
        embed_dim=192 // size.narrower,
        depths=[2, 2, 18 // size.shallower, 2],
        num_heads=[heads, 2 * heads, 4 * heads, 8 * heads],
        window_size=12,
        image_size=384,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def clip(size: Size) -> hf.CLIPVisionConfig:
    """The image encoder of Stable unCLIP, CLIP ViT-H."""
    return hf.CLIPVisionConfig(
        hidden_size=1280 // size.narrower,
        intermediate_size=5120 // size.narrower,
        num_hidden_layers=32 // size.shallower,
        num_attention_heads=16 // size.narrower,
        image_size=224,
        patch_size=14,
        projection_dim=1024 // size.narrower,
        hidden_act="gelu",
    )
