"""The six shapes, each in its own axes and in units of its radius: where rays hit it, and how its surface stands."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from innervision.world.scenes.vectors import Array, Triple, Vector

# In units of the radius: how far the shape reaches from its centre, and from its centre to its foot.
BOUND = {"sphere": 1.0, "cube": 1.42, "cylinder": 1.21, "cone": 1.39, "ring": 1.18, "cross": 1.22}
HALF_HEIGHT = {"sphere": 1.0, "cube": 0.82, "cylinder": 1.0, "cone": 1.0, "ring": 1.12, "cross": 1.1}
_CUBE = (0.82, 0.82, 0.82)
_POST, _BEAM = (0.36, 1.1, 0.36), (1.1, 0.36, 0.36)
_CYLINDER_RADIUS, _CONE_RADIUS, _SLOPE = 0.68, 0.96, 0.48
_RING_OUTER, _RING_INNER, _RING_HALF_WIDTH = 1.12, 0.62, 0.32


# Each function gives t of the first hit of start + t · ray with its shape, infinity where there is none.
# Start and ray are three components each, arrays or numbers; no ray starts within a shape.


def _hit_sphere(start: Triple, ray: Triple) -> Array:
    into, out = _quadric(start, ray, (0, 1, 2), 1.0)
    return np.where((into <= out) & (into > 0), into, np.float32(np.inf))


def _hit_cube(start: Triple, ray: Triple) -> Array:
    return _hit_box(start, ray, _CUBE)


def _hit_cross(start: Triple, ray: Triple) -> Array:
    return np.minimum(_hit_box(start, ray, _POST), _hit_box(start, ray, _BEAM))


def _hit_box(start: Triple, ray: Triple, half: Vector) -> Array:
    into, out = _slab(start[0], ray[0], half[0])
    for axis in (1, 2):
        enter, leave = _slab(start[axis], ray[axis], half[axis])
        into, out = np.maximum(into, enter), np.minimum(out, leave)
    return np.where((into <= out) & (into > 0), into, np.float32(np.inf))


def _hit_cylinder(start: Triple, ray: Triple) -> Array:
    into, out = _quadric(start, ray, (0, 2), _CYLINDER_RADIUS)
    enter, leave = _slab(start[1], ray[1], 1.0)
    into, out = np.maximum(into, enter), np.minimum(out, leave)
    return np.where((into <= out) & (into > 0), into, np.float32(np.inf))


def _hit_cone(start: Triple, ray: Triple) -> Array:
    """Apex at y = 1, base at y = −1: x² + z² = slope² (1 − y)²."""
    slope = np.float32(_SLOPE * _SLOPE)
    below = 1 - start[1]
    a = ray[0] * ray[0] + ray[2] * ray[2] - slope * (ray[1] * ray[1])
    b = start[0] * ray[0] + start[2] * ray[2] + slope * (below * ray[1])
    c = start[0] * start[0] + start[2] * start[2] - slope * (below * below)
    root = np.sqrt(b * b - a * c)
    base = (-1 - start[1]) / ray[1]
    x, z = start[0] + base * ray[0], start[2] + base * ray[2]
    found = np.where((x * x + z * z <= np.float32(_CONE_RADIUS * _CONE_RADIUS)) & (base > 0), base, np.float32(np.inf))
    for t in ((-b - root) / a, (root - b) / a):
        y = start[1] + t * ray[1]
        found = np.where((y >= -1) & (y <= 1) & (t > 0) & (t < found), t, found)
    return found


def _hit_ring(start: Triple, ray: Triple) -> Array:
    """A short tube around z: its outer side, the rim that faces the ray, the far side of the hole."""
    half = np.float32(_RING_HALF_WIDTH)
    rim, _ = _slab(start[2], ray[2], _RING_HALF_WIDTH)
    x, y = start[0] + rim * ray[0], start[1] + rim * ray[1]
    off = x * x + y * y
    flat = (off <= np.float32(_RING_OUTER * _RING_OUTER)) & (off >= np.float32(_RING_INNER * _RING_INNER)) & (rim > 0)
    found = np.where(flat, rim, np.float32(np.inf))
    outside, _ = _quadric(start, ray, (0, 1), _RING_OUTER)
    _, inside = _quadric(start, ray, (0, 1), _RING_INNER)
    for t in (outside, inside):
        z = start[2] + t * ray[2]
        found = np.where((np.abs(z) <= half) & (t > 0) & (t < found), t, found)
    return found


HIT: dict[str, Callable[[Triple, Triple], Array]] = {
    "sphere": _hit_sphere,
    "cube": _hit_cube,
    "cylinder": _hit_cylinder,
    "cone": _hit_cone,
    "ring": _hit_ring,
    "cross": _hit_cross,
}


def _slab(start: Any, ray: Any, half: float) -> tuple[Any, Any]:
    """Where the ray enters and leaves |coordinate| ≤ half."""
    first, second = (np.float32(-half) - start) / ray, (np.float32(half) - start) / ray
    return np.minimum(first, second), np.maximum(first, second)


def _quadric(start: Triple, ray: Triple, axes: tuple[int, ...], radius: float) -> tuple[Any, Any]:
    """Where the ray enters and leaves the sphere or infinite cylinder; NaN where it misses it.

    Measured from the point nearest to the centre, which keeps float32 exact where the camera is far away.
    """
    square = sum(ray[axis] * ray[axis] for axis in axes)
    middle = -sum(start[axis] * ray[axis] for axis in axes) / square
    nearest = [start[axis] + middle * ray[axis] for axis in axes]
    spread = np.sqrt((np.float32(radius * radius) - sum(part * part for part in nearest)) / square)
    return middle - spread, middle + spread


# Each function gives the outward unit normal at points of the shape's surface, in its own axes.


def _normal_box(point: Triple, half: Vector) -> Triple:
    share = [np.abs(part) / np.float32(extent) for part, extent in zip(point, half, strict=True)]
    x = (share[0] >= share[1]) & (share[0] >= share[2])
    y = ~x & (share[1] >= share[2])
    return [np.sign(part) * here for part, here in zip(point, (x, y, ~(x | y)), strict=True)]


def _normal_cross(point: Triple) -> Triple:
    off = [
        np.maximum(np.maximum(*(np.abs(point[axis]) / np.float32(half[axis]) for axis in (0, 1))), 0)
        for half in (_POST, _BEAM)
    ]
    on_post = off[0] <= off[1]
    post, beam = _normal_box(point, _POST), _normal_box(point, _BEAM)
    return [np.where(on_post, a, b) for a, b in zip(post, beam, strict=True)]


def _normal_cylinder(point: Triple) -> Triple:
    cap = np.abs(point[1]) > 0.999
    return [
        np.where(cap, np.float32(0), point[0] / np.float32(_CYLINDER_RADIUS)),
        np.sign(point[1]) * cap,
        np.where(cap, np.float32(0), point[2] / np.float32(_CYLINDER_RADIUS)),
    ]


def _normal_cone(point: Triple) -> Triple:
    base = point[1] < -0.999
    off = np.sqrt(point[0] * point[0] + point[2] * point[2]) + np.float32(1e-6)
    length = np.float32(1 / math.sqrt(1 + _SLOPE * _SLOPE))
    side = np.where(base, np.float32(0), length / off)
    return [point[0] * side, np.where(base, np.float32(-1), length * np.float32(_SLOPE)), point[2] * side]


def _normal_ring(point: Triple) -> Triple:
    rim = np.abs(point[2]) > np.float32(0.999 * _RING_HALF_WIDTH)
    off = np.sqrt(point[0] * point[0] + point[1] * point[1])
    outside = off > np.float32((_RING_OUTER + _RING_INNER) / 2)
    side = np.where(rim, np.float32(0), np.where(outside, np.float32(1), np.float32(-1)) / off)
    return [point[0] * side, point[1] * side, np.sign(point[2]) * rim]


NORMAL: dict[str, Callable[[Triple], Triple]] = {
    "sphere": lambda point: point,
    "cube": lambda point: _normal_box(point, _CUBE),
    "cylinder": _normal_cylinder,
    "cone": _normal_cone,
    "ring": _normal_ring,
    "cross": _normal_cross,
}
