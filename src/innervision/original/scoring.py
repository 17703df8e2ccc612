"""How the original code scores what its experts make of predictions (protocol `paper`)."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from innervision.metrics.segmentation import overlap


def paper_verdicts(values: NDArray[np.floating], closer: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Compare values (P, 2) as the original does: unless the first is smaller, the first is closer."""
    return np.where(values[:, 0] < values[:, 1], closer == 2, closer == 1)


def paper_sample(
    depth: NDArray[np.floating], points: NDArray[np.integer], size: tuple[int, int]
) -> NDArray[np.float64]:
    """Read a map (h, w) at pixels (P, 2) of an image as the original does: 8 bits, resized by Pillow's bicubic filter.

    The map is stretched to 0…255 and cut to whole numbers. Where it is constant or not finite, so that it cannot be
    stretched, it is 0.

    Returns:
        (P,) from 0 to 1.
    """
    low, high = depth.min(), depth.max()
    span = float(high) - float(low)
    stretched = (depth - low) / (high - low) if span > 0 and np.isfinite(span) else np.zeros_like(depth)
    image = Image.fromarray((stretched * 255).astype(np.uint8))
    y, x = depth.shape[0] / size[0], depth.shape[1] / size[1]
    # One pixel of the resized image each: the filter is that of the whole resizing.
    read = [
        image.resize((1, 1), Image.Resampling.BICUBIC, box=(column * x, row * y, (column + 1) * x, (row + 1) * y))
        for row, column in points.tolist()
    ]
    return np.array([pixel.getpixel((0, 0)) for pixel in read]) / 255


def paper_iou(counts: Tensor) -> float:
    """Mean intersection over union of the classes that are in one image, where pixels of void count as wrong.

    The original (arXiv:2412.09585) calls the mean of this over images mIoU. NaN if no pixel has a class.
    """
    found = overlap(counts, void=True)
    there = found.truth > 0
    return (found.intersection[there].double() / found.union[there]).mean().item()
