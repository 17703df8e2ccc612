"""Experts see images as in the original code (protocol `paper`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, OneFormerImageProcessorPil

from innervision.targets.depth import DepthTarget
from innervision.targets.gen import GenTarget
from innervision.targets.seg import SegTarget
from innervision.targets.target import Maps, Preparer, Target


def follow_paper(target: Target) -> None:
    """Let an expert see images as the original code shows them to it; one that the original has not stays as it is.

    depth: colours reversed, position embeddings resized by the older rule. seg: resized twice with Pillow, and with
    the image's aspect where it is decoded. gen: the middle of the image, cropped as the pipeline does.
    """
    target.protocol = "paper"
    preparer = target.preparer
    size = preparer.height, preparer.width
    settings = preparer.processor.to_dict()
    if isinstance(target, DepthTarget):
        embeddings, patch = target.module.embeddings, target.module.config.patch_size
        positions = embeddings.position_embeddings.data
        embeddings.position_embeddings.data = resize_positions(positions, *(side // patch for side in size))
        target.preparer = PaperPreparer(preparer.processor, *size, reverse_colours=True)
    elif isinstance(target, SegTarget):
        processor = OneFormerImageProcessorPil(**settings)
        target.preparer = PaperPreparer(processor, *size, preparer.resize_again, squash=target.head is None)
    elif isinstance(target, GenTarget):
        target.preparer = PaperPreparer(CLIPImageProcessorPil(**settings), *size, squash=False)


@dataclass(frozen=True)
class PaperPreparer(Preparer):
    """Resizes with Pillow, which rounds to 8 bits each time, in place of one step on tensors."""

    squash: bool = True
    """Whether the image is squashed first, to `width` and `height`, bicubically; else the processor resizes (and
    crops, if it does so) by its own rule, after which images may differ in size."""
    reverse_colours: bool = False
    """Whether the channels are in the order BGR, while the statistics stay those of RGB."""

    def __call__(self, images: Sequence[Image]) -> Maps:  # type: ignore[override]  # where sizes differ, a list
        """Prepare RGB images of any sizes: pixels (B, 3, H, W), float32, or B times (3, h, w) where sizes differ."""
        if self.squash:
            images = [image.resize((self.width, self.height)) for image in images]
        arrays = [np.array(image)[..., :: -1 if self.reverse_colours else 1].copy() for image in images]
        sizing: Any = {"do_resize": self.resize_again, "do_center_crop": False} if self.squash else {}
        single = [  # one by one, since processors fill up a batch of different sizes
            self.processor(images=[array], input_data_format="channels_last", return_tensors="pt", **sizing)
            for array in arrays
        ]
        maps = [output["pixel_values"][0].float() for output in single]
        return torch.stack(maps) if len({each.shape for each in maps}) == 1 else maps


def resize_positions(positions: Tensor, height: int, width: int) -> Tensor:
    """Resize DINOv2's position embeddings as its first code does: by the factor (height + 0.1) / side.

    Newer code gives the size instead of the factor, which samples at slightly other places.

    Args:
        positions: (1, 1 + side², C), CLS first.
        height: of the new grid, in patches.
        width: of the new grid.

    Returns:
        (1, 1 + height · width, C)
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if (height, width) == (side, side):
        return positions
    grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, C, side, side)
    factors = ((height + 0.1) / side, (width + 0.1) / side)
    resized = nn.functional.interpolate(grid, scale_factor=factors, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], resized.flatten(2).mT], dim=1)
