"""Depth maps that are known of images, as depth cameras and renderers give them: 16-bit grey PNG files.

A pixel is the distance along the optical axis in millimetres, larger = farther; 0 = not known. Only what is closer than
what counts here, so any other unit of length does as well.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from innervision.data.images import image_size, orientation
from innervision.errors import InnerVisionError, require


def read_depth_map(path: str | Path, image: str | Path) -> NDArray[np.float64]:
    """Read a depth map, and see that it is of an image file as it is shown: upright, of the same shape, of any size.

    Returns:
        (H, W), in the file's unit; NaN where depth is not known.

    Raises:
        InnerVisionError: the file is missing, broken or no 16-bit grey PNG, holds no depth, or is not of the image's
            shape, or may be that of the photograph before its EXIF orientation turned it.
    """
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            if not opened.mode.startswith("I;16") and opened.mode != "I":
                raise ValueError(f"its mode is {opened.mode}, not 16-bit grey")
            values = np.asarray(opened, dtype=np.float64)
    except Exception as error:  # on a broken file the decoder raises nearly anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InnerVisionError(f"cannot read the depth map {path}: {reason}") from error
    require(bool((values > 0).any()), f"the depth map {path} holds no depth: all its pixels are 0, which is unknown")
    size, turned = image_size(image), orientation(image)
    require(
        abs(values.shape[0] * size[1] - values.shape[1] * size[0]) < max(*values.shape, *size),
        f"the depth map {path} has {values.shape[0]} × {values.shape[1]} pixels, another shape than the image, which "
        f"has {size[0]} × {size[1]} as it is shown",
    )
    require(
        turned == 1 or (turned > 4 and size[0] != size[1]),
        f"the EXIF orientation of {image} may or may not hold for its depth map, too: write the image upright",
    )
    return np.where(values > 0, values, np.nan)


def in_tones_of(depth: NDArray[np.floating], shown: NDArray[np.floating]) -> NDArray[np.float64]:
    """Give a depth map the values of another one of the same image: the farthest pixel has the least of them.

    Experts' maps have units of their own, often with an unknown scale and shift. So the pixels of the truth, in their
    order from far to close, take the values of the expert's map in theirs; pixels of one depth take the mean of theirs.
    Both maps are then on one scale, and only where what is close or far tells them apart.

    Args:
        depth: (H, W), larger = farther; NaN where it is not known.
        shown: (H, W), larger = closer. Pixels that are not finite, or of which depth is not known, are left out.

    Returns:
        (H, W), as `shown`; NaN where depth is not known, or nothing is finite.
    """
    known = np.isfinite(depth)
    values = np.sort(shown[known & np.isfinite(shown)])
    found = np.full(depth.shape, np.nan)
    if len(values):
        _, number, counts = np.unique(-depth[known], return_inverse=True, return_counts=True)
        # from 0 to 1; pixels of one depth share one
        ranks = (np.cumsum(counts) - (counts + 1) / 2) / max(counts.sum() - 1, 1)
        found[known] = np.interp(ranks, np.linspace(0, 1, len(values)), values)[number]
    return found
