"""Features of real images, kept on disk: whatever runs are scored on a set of images, a model describes it once."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from innervision.data.sources import ImageSet, short_hash
from innervision.errors import InnerVisionError
from innervision.files import atomic_write


class KnownFeatures:
    """The features of a set of images by one model, each under a name; none where they are not known yet."""

    def __init__(self, images: ImageSet, model: Sequence[Any]) -> None:
        """Read what is known.

        Args:
            images: told from others by their content.
            model: what the features depend on beside the images, in values of JSON.
        """
        self.rows = {name: row for row, name in enumerate(images.names)}
        digest = short_hash([images.names, images.fingerprint(), model]).removeprefix("sha256:")
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.path = cache / "innervision" / "features" / f"{digest}.safetensors"
        self.features: dict[str, NDArray[np.float32]] = {}
        """By name: (images, d), in the order of the set."""
        with suppress(OSError, SafetensorError):
            self.features = load_file(self.path)

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return bool(self.features)

    def of(self, images: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Give the features of these images, (len(images), d) each."""
        rows = [self.rows[name] for name in images]
        return {name: features[rows] for name, features in self.features.items()}

    def keep(self, images: Sequence[str], features: Mapping[str, NDArray[Any]]) -> None:
        """Write the features (len(images), d) of images, unless there are some or these are not of the whole set."""
        if self.features or len(images) != len(self.rows):
            return
        order = np.argsort([self.rows[name] for name in images])
        with suppress(OSError, InnerVisionError), atomic_write(self.path) as temporary:  # it only saves time
            save_file({name: array[order] for name, array in features.items()}, temporary)
