"""Experts see images as in the original code (protocol `paper`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from innervision.targets.target import Preparer


@dataclass(frozen=True)
class PaperPreparer(Preparer):
    """Resizes with Pillow, which rounds to 8 bits each time, in place of one step on tensors."""

    squash: bool = True
    """Whether the image is squashed first, to `width` and `height`, bicubically; else the processor resizes (and
    crops, if it does so) by its own rule. Images that then differ in size are joined by `join_maps`."""
    reverse_colours: bool = False
    """Whether the channels are in the order BGR, while the statistics stay those of RGB."""

    def __call__(self, images: Sequence[Image]) -> Tensor:
        """Prepare RGB images of any sizes: pixels (B, 3, H, W), float32."""
        if self.squash:
            images = [image.resize((self.width, self.height)) for image in images]
        arrays = [np.array(image)[..., :: -1 if self.reverse_colours else 1].copy() for image in images]
        sizing: Any = {"do_resize": self.resize_again, "do_center_crop": False} if self.squash else {}
        single = [  # one by one, since processors fill up a batch of different sizes
            self.processor(images=[array], input_data_format="channels_last", return_tensors="pt", **sizing)
            for array in arrays
        ]
        return join_maps([output["pixel_values"][0] for output in single]).float()


def join_maps(maps: Sequence[Tensor]) -> Tensor:
    """Stack maps (C, h, w) of different sizes, with NaN to the right and below: (B, C, H, W)."""
    height, width = (max(each.shape[side] for each in maps) for side in (-2, -1))
    missing = [(0, width - each.shape[-1], 0, height - each.shape[-2]) for each in maps]
    return torch.stack([nn.functional.pad(each, pad, value=torch.nan) for each, pad in zip(maps, missing, strict=True)])


def own_part(joined: Tensor) -> Tensor:
    """Give the map (C, h, w) that `join_maps` made a part of a batch (C, H, W); at least one cell of it."""
    height, width = joined[0, :, 0].isfinite().sum(), joined[0, 0].isfinite().sum()
    return joined[:, : height.clamp(min=1), : width.clamp(min=1)]


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
