"""A seeded renderer: shaded objects in a room or on grass, with metric depth, panoptic map and captions.

World coordinates are metres, x to the right, y up, z ahead of the camera; the floor is y = 0 and the camera
stands above the origin. Depth is measured along the optical axis (z-depth, not the length of the ray).

A scene depends on the seed and the index alone. Draws come from the raw stream of PCG64, which NumPy keeps
stable, and after that only + − × ÷ √ and comparisons are used, which IEEE 754 rounds alike on every machine:
no sine, no power, no matrix product, no sum whose order the library chooses.

    scene = render(seed=0, index=1)
    scene.image, scene.depth, scene.captions[0]
"""

import numpy as np

from innervision.world.scenes.composing import compose
from innervision.world.scenes.dice import Dice
from innervision.world.scenes.naming import find_segments, relations, write_captions
from innervision.world.scenes.painting import photograph
from innervision.world.scenes.scene import (
    CATEGORIES,
    COLOURS,
    FAR,
    NAMED_FROM,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    VERSION,
    VOCABULARY,
    Camera,
    Scene,
    SceneObject,
    Segment,
)
from innervision.world.scenes.tracing import CENTRE, SPREAD, trace
from innervision.world.scenes.vectors import Array

__all__ = [
    "CATEGORIES",
    "COLOURS",
    "FAR",
    "NAMED_FROM",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "TEXTURES",
    "VERSION",
    "VOCABULARY",
    "Camera",
    "Dice",
    "Scene",
    "SceneObject",
    "Segment",
    "depth_map",
    "relations",
    "render",
]


def render(seed: int, index: int, size: int = 112) -> Scene:
    """Draw scene `index` of the world `seed`; both are non-negative, `size` is the side in pixels.

    Depth and panoptic map belong to the ray through a pixel's centre, colours are the mean of three rays.
    """
    dice = Dice(seed, index)
    camera, setting, objects = compose(dice, size)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        view = trace(camera, setting, objects, size, SPREAD)
        image = photograph(view, setting, objects)
    panoptic, segments, objects = find_segments(view, setting, objects)
    captions = write_captions(dice, objects, setting, size)
    return Scene(image, view.depth[0].copy(), panoptic, segments, objects, captions, camera, setting.place)


def depth_map(seed: int, index: int, size: int = 112) -> Array:
    """`render(seed, index, size).depth` without the picture, several times faster."""  # (H, W)
    camera, setting, objects = compose(Dice(seed, index), size)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return trace(camera, setting, objects, size, CENTRE).depth[0]
