"""Images and benchmarks on disk: which images a source holds, their pixels, and what is known about them."""

from innervision.data.da2k import DA2K, PointPairs, read_da2k
from innervision.data.images import IMAGE_SUFFIXES, BadImage, image_size, read_image
from innervision.data.panoptic import VOID, Panoptic, PanopticMap, read_panoptic
from innervision.data.sources import ImageSet, find_images

__all__ = [
    "DA2K",
    "IMAGE_SUFFIXES",
    "VOID",
    "BadImage",
    "ImageSet",
    "Panoptic",
    "PanopticMap",
    "PointPairs",
    "find_images",
    "image_size",
    "read_da2k",
    "read_image",
    "read_panoptic",
]
