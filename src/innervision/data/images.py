"""One image file of any common kind, read as 8-bit RGB."""

import functools
import os
import re
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
}
"""Pillow's name of every format that is read, and the suffixes of its files.

Pillow knows more, but some of those run other programs on the file (EPS starts Ghostscript).
"""

IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""How the names of image files end, in lower case."""

UNREAD_SUFFIXES = frozenset(
    f".{name}"
    for name in re.findall(r"\w+", "heic heif hif dng cr2 cr3 nef arw raf orf rw2 pef srw 3fr jxl psd exr svg")
)
"""How files end that hold images which are not read: photographs as phones (HEIC) and cameras (RAW) keep them."""


class BadImage(Exception):
    """An image file that cannot be read: `path` names it, `reason` says in a few words why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read image {self.path}: {self.reason}"


def read_image(path: str | Path) -> Image.Image:
    """Read an image file into memory: mode RGB, 8 bit, full resolution, upright, without metadata.

    - The EXIF orientation is applied; of a file with several frames the first is taken.
    - Transparent parts are laid over white.
    - 16-bit grey is divided by 257 and rounded, so 65535 becomes 255. 16-bit colour keeps its high byte,
      which is all that Pillow reads.
    - 32-bit grey counts as 16-bit where its values fit, else its largest value is white. Float grey is white
      at the first of 1, 255 and 65535 that no value exceeds, else at its largest value; negative values and
      NaN are black.
    - CMYK JPEGs hold inverted inks, as Adobe and the browsers have it. Colour profiles are not applied.

    Raises:
        BadImage: no such file, empty, not an image of a known format, truncated, broken, or more pixels than
            Pillow's limit against decompression bombs.
    """
    try:
        with Image.open(path, formats=_formats()) as image:
            image.load()
            if 0 in image.size:
                raise ValueError("it has no pixels")
            orientation = _orientation(image)
            rgb = _to_rgb(image)
    except Exception as error:  # on a broken file the decoders raise nearly anything
        raise BadImage(os.fspath(path), _reason(path, error)) from error
    # Transposing rewrites the file's own metadata, which can fail; so it gets to see the orientation alone.
    rgb.info = {}
    rgb.getexif()[ExifTags.Base.Orientation] = orientation
    ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


def image_size(path: str | Path) -> tuple[int, int]:
    """Give (height, width) of an image as `read_image` gives it; only the head of the file is read.

    Raises:
        BadImage: no such file, empty, or not an image of a known format.
    """
    (width, height), turned = _read_head(path)
    return (width, height) if turned > 4 else (height, width)


def orientation(path: str | Path) -> int:
    """Give the EXIF orientation that `read_image` applies: 1 = as stored, 5 to 8 exchange height and width.

    Raises:
        BadImage: as `image_size`.
    """
    return _read_head(path)[1]


def _read_head(path: str | Path) -> tuple[tuple[int, int], int]:
    """Give width and height of an image as it is stored, and its orientation."""
    try:
        with Image.open(path, formats=_formats()) as image:
            return image.size, _orientation(image)
    except Exception as error:  # on a broken file the decoders raise nearly anything
        raise BadImage(os.fspath(path), _reason(path, error)) from error


@functools.cache
def _formats() -> list[str]:
    """Those of `FORMATS` that the installed Pillow has."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none: broken metadata does not spoil good pixels."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey_to_rgb(image)
    if image.mode == "La":  # Pillow has no direct way from premultiplied grey to RGBA
        image = image.convert("LA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Scale grey of more than 8 bits, which Pillow would clip at 255."""
    values = np.asarray(image)  # (H, W)
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    largest = float(np.max(values, initial=0, where=np.isfinite(values)))
    white = next((white for white in whites if largest <= white), largest)
    scaled = np.clip(values.astype(np.float32) / np.float32(white), 0, 1)
    grey = np.rint(np.nan_to_num(scaled, nan=0.0) * 255).astype(np.uint8)
    if "transparency" in image.info:  # one grey value that stands for "nothing here"
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")


def _reason(path: str | Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        empty = os.path.getsize(path) == 0
        return "the file is empty" if empty else f"not an image in a known format ({', '.join(_formats())})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
