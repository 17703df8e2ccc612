"""A scene, and the words for what stands in it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from innervision.world.scenes.shapes import HALF_HEIGHT
from innervision.world.scenes.vectors import Array, Vector

VERSION = 1
"""Raised whenever the same seed and index come to give another scene."""


FAR = 50.0
"""Depth of the sky in metres; ground beyond it counts as sky."""


SHAPES = ("sphere", "cube", "cylinder", "cone", "ring", "cross")
COLOURS = {
    "red": (0.86, 0.13, 0.12),
    "green": (0.10, 0.62, 0.22),
    "blue": (0.13, 0.30, 0.90),
    "yellow": (0.97, 0.90, 0.15),
    "purple": (0.58, 0.20, 0.72),
    "orange": (0.98, 0.52, 0.08),
    "white": (0.93, 0.93, 0.93),
    "black": (0.20, 0.20, 0.21),
}
"""Colour name -> sRGB of the surface under white light, from 0 to 1."""


TEXTURES = ("plain", "striped", "checked", "dotted")
SIZES = {"small": (0.50, 0.62), "large": (0.85, 1.05)}
"""Size name -> range of `SceneObject.radius` in metres."""


CATEGORIES: list[dict[str, Any]] = [
    {"id": 1, "name": "sphere", "supercategory": "object", "isthing": 1, "color": [200, 60, 60]},
    {"id": 2, "name": "cube", "supercategory": "object", "isthing": 1, "color": [60, 180, 75]},
    {"id": 3, "name": "cylinder", "supercategory": "object", "isthing": 1, "color": [0, 130, 200]},
    {"id": 4, "name": "cone", "supercategory": "object", "isthing": 1, "color": [200, 190, 25]},
    {"id": 5, "name": "ring", "supercategory": "object", "isthing": 1, "color": [145, 30, 180]},
    {"id": 6, "name": "cross", "supercategory": "object", "isthing": 1, "color": [200, 130, 48]},
    {"id": 7, "name": "floor", "supercategory": "indoor", "isthing": 0, "color": [170, 150, 130]},
    {"id": 8, "name": "wall", "supercategory": "indoor", "isthing": 0, "color": [220, 210, 200]},
    {"id": 9, "name": "grass", "supercategory": "outdoor", "isthing": 0, "color": [120, 150, 80]},
    {"id": 10, "name": "sky", "supercategory": "outdoor", "isthing": 0, "color": [150, 200, 240]},
]
"""COCO's panoptic categories of this world: things are the shapes, stuff is what lies around them."""


RELATIONS = ("left of", "right of", "in front of", "behind", "above", "below")
OTHER_WORDS = "a an and the is are there with on floats floor grass room meadow ; , ."

VOCABULARY = tuple(
    sorted(
        {*SHAPES, *COLOURS, *TEXTURES[1:], *SIZES}
        | {word for relation in RELATIONS for word in relation.split()}
        | set(OTHER_WORDS.split())
    )
)
"""Every word and mark that a caption can hold."""


NAMED_FROM = 0.4
"""Captions name an object when at least this share of its outline in the image is not hidden."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera at (0, height, 0); `right`, `down` and `forward` are unit vectors of the world.

    The ray through the centre of pixel (row, column) of a square image of `size` pixels is
    forward + right · (column + ½ − size/2) / focal + down · (row + ½ − size/2) / focal; a point at t times
    that vector from the camera has depth t.
    """

    height: float
    focal: float
    right: Vector
    down: Vector
    forward: Vector


@dataclass(frozen=True)
class SceneObject:
    """One object. `radius` is in metres and scales the shape: a sphere has exactly this radius.

    `axes` are the object's own x, y and z as unit vectors of the world, `depth` is the depth of the centre,
    `pixel` its (row, column) in the image, `visibility` the share of the outline in the image that nothing
    hides, `area` what is left of it in pixels, `segment_id` its id in `Scene.panoptic` (0: fully hidden).
    """

    shape: str
    colour: str
    texture: str
    size: str
    glossy: bool
    floating: bool
    radius: float
    position: Vector
    axes: tuple[Vector, Vector, Vector]
    depth: float
    pixel: tuple[float, float]
    visibility: float = 0.0
    area: int = 0
    segment_id: int = 0

    @property
    def named(self) -> bool:
        """Whether the captions name this object."""
        return self.segment_id > 0 and self.visibility >= NAMED_FROM

    @property
    def half_height(self) -> float:
        """Half the height of the upright object in metres."""
        return HALF_HEIGHT[self.shape] * self.radius


@dataclass(frozen=True)
class Segment:
    """A region of the panoptic map; `area` in pixels, `bbox` as COCO's [left, top, width, height]."""

    id: int
    category_id: int
    isthing: bool
    area: int
    bbox: tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and everything that is known about it. `place` is "indoor" or "outdoor"."""

    image: NDArray[np.uint8]  # (H, W, 3) sRGB
    depth: Array  # (H, W) metres, at most FAR
    panoptic: NDArray[np.int32]  # (H, W) id of a segment; every pixel has one
    segments: list[Segment]
    objects: list[SceneObject]
    captions: list[str]  # five; the first is the plainest
    camera: Camera
    place: str
