"""What each ray from the camera meets."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from innervision.world.scenes.composing import Setting
from innervision.world.scenes.scene import FAR, Camera, SceneObject
from innervision.world.scenes.shapes import BOUND, HIT
from innervision.world.scenes.vectors import Array, Triple, Vector, add, dot, scale

GROUND, SKY, FIRST_WALL, FIRST_OBJECT = 0, 1, 2, 4
CENTRE = [(0.5, 0.5)]
SPREAD = [(0.5, 0.5), (0.83, 0.17), (0.17, 0.83)]
_Window = tuple[slice, slice, slice]
_EVERYWHERE: _Window = (slice(None), slice(None), slice(None))


@dataclass(frozen=True)
class View:
    """Rays through the image and what they met: R rays a pixel, at the same places in every pixel."""

    camera: Camera
    x: Array  # (R, 1, W) where the rays pass the plane at depth 1
    y: Array  # (R, H, 1)
    depth: Array  # (R, H, W)
    owner: NDArray[np.int8]  # (R, H, W) code of the nearest surface
    outlines: list[int]  # of each object: how many centre rays it would have if it were alone

    def along(self, direction: Vector, window: _Window = _EVERYWHERE) -> Array:
        """The rays' component along a direction of the world."""  # (R, rows, columns)
        right, down, forward = (
            np.float32(dot(axis, direction)) for axis in (self.camera.right, self.camera.down, self.camera.forward)
        )
        return right * self.x[:, :, window[2]] + (down * self.y[:, window[1]] + forward)

    def window(self, item: SceneObject) -> _Window:
        """The pixels that the object's bounding sphere covers: the tangents from the camera."""
        bound = BOUND[item.shape] * item.radius
        apart = add(item.position, (0.0, self.camera.height, 0.0), -1.0)
        squared = item.depth * item.depth - bound * bound
        slices = []
        for axis, places in ((self.camera.down, self.y[0, :, 0]), (self.camera.right, self.x[0, 0])):
            off = dot(apart, axis)
            spread = bound * math.sqrt(max(off * off + squared, 0.0))
            low, high = (off * item.depth - spread) / squared, (off * item.depth + spread) / squared
            first, last = int(np.searchsorted(places, low)), int(np.searchsorted(places, high))
            slices.append(slice(max(first - 1, 0), last + 1))
        return slice(None), slices[0], slices[1]

    def local(self, item: SceneObject, window: _Window) -> tuple[Triple, Triple]:
        """The camera and its rays in the object's axes, in units of its radius; depth keeps its meaning."""
        apart = add((0.0, self.camera.height, 0.0), item.position, -1.0)
        start = [np.float32(dot(apart, axis) / item.radius) for axis in item.axes]
        return start, [self.along(scale(axis, 1 / item.radius), window) for axis in item.axes]


def trace(
    camera: Camera,
    setting: Setting,
    objects: list[SceneObject],
    size: int,
    places: list[tuple[float, float]],
) -> View:
    """Send rays through these (row, column) places of every pixel."""
    pixel = np.arange(size, dtype=np.float32) - np.float32(size / 2)
    x = np.stack([(pixel + np.float32(column)) / np.float32(camera.focal) for _, column in places])
    y = np.stack([(pixel + np.float32(row)) / np.float32(camera.focal) for row, _ in places])
    shape = (len(places), size, size)
    depth, owner = np.full(shape, np.float32(FAR)), np.full(shape, SKY, np.int8)
    view = View(camera, x[:, None, :], y[:, :, None], depth, owner, [])

    def offer(t: Array, code: int, window: _Window) -> None:
        nearer = t < depth[window]
        np.copyto(depth[window], t, where=nearer)
        np.copyto(owner[window], np.int8(code), where=nearer)

    planes: list[tuple[int, Vector, float]] = [(GROUND, (0.0, -1.0, 0.0), camera.height)]
    planes += [(FIRST_WALL + k, (x, 0.0, z), distance) for k, (x, z, distance) in enumerate(setting.walls)]
    for code, outward, distance in planes:
        towards = view.along(outward)
        t = np.float32(distance) / towards
        np.copyto(t, np.float32(np.inf), where=towards <= 0)
        offer(t, code, _EVERYWHERE)
    for number, item in enumerate(objects):
        window = view.window(item)
        t = HIT[item.shape](*view.local(item, window))
        view.outlines.append(int(np.count_nonzero(t[0] < np.inf)))
        offer(t, FIRST_OBJECT + number, window)
    return view
