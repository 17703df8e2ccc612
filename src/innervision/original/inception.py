"""Images as Inception takes them, and as the original's FID describes them: the same weights, but other pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image, Resampling
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

INCEPTION_SIDE = 299


@dataclass(frozen=True)
class Squash:
    """Squashes images to a square of 8-bit pixels with a filter of Pillow's, all of which antialias."""

    side: int
    filter: Resampling
    how: str
    """The rest of what reports say."""

    def __str__(self) -> str:
        return f"squashed to {self.side} × {self.side} pixels of 8 bits{self.how}"

    def __call__(self, images: Sequence[Image]) -> Tensor:
        """Prepare RGB images of any sizes: pixels (B, 3, side, side), uint8."""
        size = self.side, self.side
        return torch.stack([pil_to_tensor(image.resize(size, self.filter)) for image in images])


SQUASH = Squash(INCEPTION_SIDE, Resampling.BICUBIC, ", bicubic with antialiasing")
"""To the network's own size at once (Parmar et al. 2022, arXiv:2104.11222)."""

PAPER_SQUASH = Squash(
    256,
    Resampling.LANCZOS,
    f" by Lanczos, then to {INCEPTION_SIDE} × {INCEPTION_SIDE} bilinearly between pixel centres, from -1 to 1",
)
"""As the original resizes real and drawn images, before it writes them as PNG."""


@torch.no_grad()
def describe_as_paper(network: nn.Module, pixels: Tensor) -> Tensor:
    """Give the features (B, 2048) of the last pooling for 8-bit pixels (B, 3, h, w), on the network's device.

    torch-fidelity, whose network this is, follows TensorFlow: it samples from pixels' corners and maps 128 to 0. The
    original enlarges between pixels' centres and maps 0…1 to -1…1.
    """
    weight: Any = next(network.parameters())
    with torch.autocast(weight.device.type, enabled=False):
        values = pixels.to(weight) / 255
        size = INCEPTION_SIDE, INCEPTION_SIDE
        values = 2 * nn.functional.interpolate(values, size, mode="bilinear", align_corners=False) - 1
        for name, layer in network.named_children():  # the order in which the network itself applies them
            if name != "fc":
                values = layer(values)
        return values.flatten(1)
