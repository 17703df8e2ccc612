"""The models of the benchmark, built from configurations with random weights: nothing is downloaded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor

from innervision.config import ProbeSettings, TrainSettings
from innervision.data.loader import Batch
from innervision.engine.descent import Descent
from innervision.engine.session import Session
from innervision.engine.solver import Solver
from innervision.mllm import MLLM, Inputs
from innervision.mllm.places import PlaceFinder
from innervision.probes import ProbeBank
from innervision.targets.depth import DepthTarget
from innervision.targets.gen import GenTarget
from innervision.targets.seg import SegTarget
from innervision.targets.target import Preparer, Target

TEXT_TOKENS = 20
"""What LLaVA's template and "Describe the image in two lines." come to."""


@dataclass(frozen=True)
class Size:
    """The full-size models made smaller in such a way that the shares of the work stay as they are.

    Dividing widths, numbers of heads and numbers of tokens by the same number divides the work of every part by
    its cube: of projections and of attention, in the MLLM, the experts, the depth head and the probes.
    """

    shrink: int
    """Divides widths, heads and tokens: 1, 4 or 16, so that the sides of images can be divided by its root."""
    shallower: int
    """Divides the number of layers of the decoder, the vision tower and the experts."""
    batch: int
    """Images that go through the models at once."""

    def __str__(self) -> str:
        """Say how the models differ from the full ones."""
        return f"widths, heads and tokens / {self.shrink}, {self.num_layers} decoder layers"

    @property
    def num_layers(self) -> int:
        """Of the decoder."""
        return 32 // self.shallower

    @property
    def side_shrink(self) -> int:
        """Divides the sides of images."""
        return math.isqrt(self.shrink)

    def heads(self, full: int) -> int:
        """Divide a number of attention heads."""
        return max(1, full // self.shrink)


SIZES = {"full": Size(1, 1, 8), "cpu": Size(4, 4, 8), "tiny": Size(16, 8, 2)}
"""For speed, by name: for an accelerator, for two CPU cores, and to see in seconds whether the benchmark works."""
MEMORY_SIZES = {"full": Size(1, 1, 8), "cpu": Size(4, 1, 2), "tiny": Size(16, 1, 2)}
"""For memory: all have the 32 decoder layers."""


SQUARES = 12
"""Rows, and columns, of squares of colour in an image."""

IMAGES = 10_000
"""Of a run, so many that no exact probe is solved within the steps that are timed."""


@dataclass
class Bench:
    """The frozen models and a batch, on one device."""

    size: Size
    mllm: MLLM
    targets: list[Target]
    depth_model: hf.DepthAnythingForDepthEstimation
    """The depth expert with its head; `targets` has its backbone."""
    batch: Batch


def build(size: Size, device: torch.device) -> Bench:
    """Build LLaVA-1.5-7B, Depth Anything V2-L, OneFormer's Swin-L and CLIP ViT-H, at a size.

    On an accelerator the MLLM is in bfloat16 and the experts in float32, as in `innervision train`.

    Args:
        size: of the models.
        device: where; "meta" builds without memory.
    """
    torch.manual_seed(0)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    with device:
        model = hf.AutoModelForImageTextToText.from_config(llava(size), dtype=dtype)
        mllm = MLLM(model, None, name="LLaVA-1.5")  # type: ignore[arg-type]  # the inputs are made here
        mllm.widths = dict.fromkeys(range(mllm.num_layers + 1), model.config.text_config.hidden_size)
        depth_model = hf.DepthAnythingForDepthEstimation(depth_anything(size)).eval().requires_grad_(False)
        grid = {"largest_grid": SegTarget.largest_grid // size.side_shrink}
        seg_target = type("SmallerSegTarget", (SegTarget,), grid)
        experts = [
            (DepthTarget, depth_model.backbone, DepthTarget.size),
            (seg_target, hf.SwinBackbone(swin(size)), 800),
            (GenTarget, hf.CLIPVisionModelWithProjection(clip(size)), 224),
        ]
        processor = hf.CLIPImageProcessor()  # not used: the pixels are made here
        targets = []
        for kind, module, side in experts:
            preparer = Preparer(processor, side // size.side_shrink, side // size.side_shrink)
            targets.append(kind(module, preparer))
        batch = make_batch(size, mllm, targets)
    return Bench(size, mllm, targets, depth_model, batch)


def make_solver(bench: Bench, layers: Sequence[int], images: int = IMAGES) -> Solver:
    """Make the sums of exact probes of all targets, for a run over so many images, which are named "0", "1" …"""
    session, banks = _make_probes(bench, layers, ProbeSettings(kind="ridge"))
    return Solver(session, banks, layers, [str(number) for number in range(images)])


def make_descent(bench: Bench, layers: Sequence[int]) -> Descent:
    """Make resamplers of all targets and their optimizer."""
    session, banks = _make_probes(bench, layers, ProbeSettings(kind="resampler", heads=bench.size.heads(4)))
    return Descent(session, banks, layers, num_steps=IMAGES)


def _make_probes(bench: Bench, layers: Sequence[int], probe: ProbeSettings) -> tuple[Session, dict[str, ProbeBank]]:
    with bench.mllm.device:
        banks = {target.name: ProbeBank.for_models(bench.mllm, target, layers, probe) for target in bench.targets}
    return BenchSession(
        TrainSettings(mllm="", images="", out="", probe=probe), bench.mllm, bench.targets, "train"
    ), banks


class BenchSession(Session):
    """Knows the places of LLaVA's tokens: to find them by experiment would take an image processor."""

    @cached_property
    def place_finder(self) -> PlaceFinder:
        """Tells where the tokens stand in a square image."""
        return SquareGrid(self.mllm)


class SquareGrid(PlaceFinder):
    """The image tokens are a grid over the whole of a square image, as LLaVA's are."""

    def __init__(self, mllm: MLLM) -> None:
        """Take the number of rows and columns from the configuration."""
        vision = mllm.model.config.vision_config
        self.side = vision.image_size // vision.patch_size

    def find(self, inputs: Inputs, layers: Sequence[int]) -> dict[int, Tensor]:
        """Tell the places of the tokens after the first. See `PlaceFinder.find`."""
        centres = (torch.arange(self.side) + 0.5) / self.side
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        sizes = torch.full_like(rows, 1 / self.side)
        grid = torch.stack([rows, columns, sizes, sizes], dim=2).flatten(0, 1)  # (side², 4)
        places = torch.full((*inputs.mask.shape, 4), float("nan"))
        places[:, 1 : 1 + len(grid)] = grid
        return {0: places}


def make_batch(size: Size, mllm: MLLM, targets: Sequence[Target], first: int = 0) -> Batch:
    """Make random images on PyTorch's current device: squares of colour, which the MLLM and the experts see alike.

    Args:
        size: says how many.
        mllm: sees them.
        targets: see them.
        first: number of the first image, which is its name and makes its colours.
    """
    numbers = range(first, first + size.batch)
    device = torch.get_default_device()
    with torch.device("cpu"):
        seeds = [torch.Generator().manual_seed(number) for number in numbers]
        colours = torch.stack([torch.randn(3, SQUARES, SQUARES, generator=seed) for seed in seeds])

    def draw(height: int, width: int) -> Tensor:
        return F.interpolate(colours, (height, width)).to(device)

    side = mllm.model.config.vision_config.image_size
    pixels = {target.name: draw(target.preparer.height, target.preparer.width) for target in targets}
    return Batch([str(number) for number in numbers], make_inputs(mllm, size, draw(side, side)), pixels, bad=[])


def make_inputs(mllm: MLLM, size: Size, pixels: Tensor) -> Inputs:
    """Make a prompt on PyTorch's current device, the same for all images, laid out as LLaVA's processor does."""
    config = mllm.model.config
    side = config.vision_config.image_size
    num_patches = (side // config.vision_config.patch_size) ** 2
    batch, num_tokens = size.batch, num_patches + max(2, TEXT_TOKENS // size.shrink)
    image_mask = torch.zeros(batch, num_tokens, dtype=torch.bool)
    image_mask[:, 1 : 1 + num_patches] = True
    ids = torch.arange(num_tokens).expand(batch, -1)
    tensors: dict[str, Tensor] = {
        "input_ids": ids.masked_fill(image_mask, config.image_token_index),
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels,
    }
    sizes = torch.full((batch, 2), side)
    return Inputs(tensors, torch.ones_like(image_mask), image_mask, sizes)


def llava(size: Size) -> hf.LlavaConfig:
    """LLaVA-1.5-7B: CLIP ViT-L at 336 pixels and Vicuna-7B. The last token of the vocabulary is the image's.

    The vocabulary is divided too, so that the logits' share of the work stays as it is.
    """
    vocabulary = 32_064 // size.shrink // size.shallower
    vision = hf.CLIPVisionConfig(
        hidden_size=1024 // size.shrink,
        intermediate_size=4096 // size.shrink,
        num_hidden_layers=24 // size.shallower,
        num_attention_heads=size.heads(16),
        image_size=336 // size.side_shrink,
        patch_size=14,
    )
    text = hf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=4096 // size.shrink,
        intermediate_size=11_008 // size.shrink,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.heads(32),
        max_position_embeddings=4096,
    )
    return hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=vocabulary - 1)


def depth_anything(size: Size) -> hf.DepthAnythingConfig:
    """Depth Anything V2-L, its DPT head included."""
    depth = 24 // size.shallower
    backbone = hf.Dinov2Config(
        hidden_size=1024 // size.shrink,
        num_hidden_layers=depth,
        num_attention_heads=size.heads(16),
        image_size=14 * (37 // size.side_shrink),
        patch_size=14,
        out_indices=[5 * depth // 24, 12 * depth // 24, 18 * depth // 24, depth],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    return hf.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=1024 // size.shrink,
        neck_hidden_sizes=[channels // size.shrink for channels in (256, 512, 1024, 1024)],
        fusion_hidden_size=256 // size.shrink,
        head_hidden_size=32 // size.shrink,
    )


def swin(size: Size) -> hf.SwinConfig:
    """The backbone of OneFormer COCO Swin-L, which sees 800 × 800 pixels."""
    heads = size.heads(6)
    return hf.SwinConfig(
        embed_dim=192 // size.shrink,
        depths=[max(1, layers // size.shallower) for layers in (2, 2, 18, 2)],
        num_heads=[heads, 2 * heads, 4 * heads, 8 * heads],
        window_size=12 // size.side_shrink,
        image_size=384 // size.side_shrink,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def clip(size: Size) -> hf.CLIPVisionConfig:
    """The image encoder of Stable unCLIP, CLIP ViT-H."""
    return hf.CLIPVisionConfig(
        hidden_size=1280 // size.shrink,
        intermediate_size=5120 // size.shrink,
        num_hidden_layers=32 // size.shallower,
        num_attention_heads=size.heads(16),
        image_size=224 // size.side_shrink,
        patch_size=14,
        projection_dim=1024 // size.shrink,
        hidden_act="gelu",
    )
