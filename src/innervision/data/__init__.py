"""Images on disk: which ones a source holds, and their pixels."""

from innervision.data.images import IMAGE_SUFFIXES, BadImage, read_image
from innervision.data.sources import ImageSet, find_images

__all__ = ["IMAGE_SUFFIXES", "BadImage", "ImageSet", "find_images", "read_image"]
