"""What colour each ray brings back: surfaces, light, shadows, haze."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from innervision.world.scenes.composing import Setting, linear
from innervision.world.scenes.scene import COLOURS, SceneObject
from innervision.world.scenes.shapes import BOUND, HIT, NORMAL
from innervision.world.scenes.tracing import FIRST_OBJECT, FIRST_WALL, GROUND, SKY, View
from innervision.world.scenes.vectors import Array, Triple, Vector, add, dot, inner


@dataclass(frozen=True)
class _Canvas:
    """What the painters fill in, ray by ray."""

    colour: Array  # (3, n) of the surface, in linear light
    sunlit: Array  # (n,) cosine between surface and sun, 0 in the shade
    ambient: Array  # (n,) share of the ambient light that reaches the surface
    shine: Array  # (n,) highlight


def photograph(view: View, setting: Setting, objects: list[SceneObject]) -> NDArray[np.uint8]:
    rays = view.depth.size
    canvas = _Canvas(
        np.empty((3, rays), np.float32),
        np.zeros(rays, np.float32),
        np.ones(rays, np.float32),
        np.zeros(rays, np.float32),
    )
    _paint_ground(view, setting, canvas)
    _paint_walls(view, setting, canvas)
    for number, item in enumerate(objects):
        _paint_object(view, setting, item, FIRST_OBJECT + number, canvas)
    _cast_shadows(view, setting, objects, canvas)
    depth = view.depth.ravel()
    haze = depth / (depth + 70) if setting.place == "outdoor" else None
    for channel, colour in enumerate(canvas.colour):
        light = canvas.sunlit * np.float32(setting.sun[channel])
        light += canvas.ambient * np.float32(setting.ambient[channel])
        colour *= light
        colour += canvas.shine
        if haze is not None:
            colour += haze * (np.float32(setting.wall_tones[1][channel]) - colour)
    _paint_sky(view, setting, canvas)
    ray = canvas.colour.reshape(3, *view.depth.shape)
    mean = np.minimum((ray[:, 0] + ray[:, 1] + ray[:, 2]) * np.float32(1 / 3), 1)  # (3, H, W)
    image = (np.sqrt(mean) * 255 + np.float32(0.5)).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(1, 2, 0))


def _paint_ground(view: View, setting: Setting, canvas: _Canvas) -> None:
    ground = np.flatnonzero(view.owner == GROUND)
    x, z = setting.across
    u = (view.depth * view.along((x, 0.0, z))).take(ground)
    v = (view.depth * view.along((-z, 0.0, x))).take(ground)
    share: Any = 0.0
    if setting.ground_pattern == "grass":
        fine = _cell(setting.noise, np.floor(u * 6), np.floor(v * 6))
        share = 0.7 * _smooth(setting.noise, u * 0.8, v * 0.8) + 0.3 * fine
    elif setting.ground_pattern == "checks":
        share = _odd(u) ^ _odd(v)
    elif setting.ground_pattern == "planks":
        share = _odd(v * 1.5)
    _lay(canvas, ground, setting.ground_tones, share)
    canvas.sunlit[ground] = setting.light[1]


def _paint_walls(view: View, setting: Setting, canvas: _Canvas) -> None:
    for number, (x, z, _) in enumerate(setting.walls):
        wall = np.flatnonzero(view.owner == FIRST_WALL + number)
        u = (view.depth * view.along((z, 0.0, -x))).take(wall)
        share: Any = 0.0
        if setting.wall_pattern == "panels":
            share = _odd(u * 0.8)
        elif setting.wall_pattern == "bricks":
            v = (view.depth * view.along((0.0, 1.6, 0.0))).take(wall)
            u = u * 0.8 + 0.5 * _odd(v)
            share = (v - np.floor(v) < 0.14) | (u - np.floor(u) < 0.07)
        _lay(canvas, wall, setting.wall_tones, share)
        canvas.sunlit[wall] = max(0.0, -setting.light[0] * x - setting.light[2] * z)
        canvas.ambient[wall] = 0.85


def _paint_sky(view: View, setting: Setting, canvas: _Canvas) -> None:
    sky = np.flatnonzero(view.owner == SKY)
    if not sky.size:
        return
    ahead = view.along((0.0, 0.0, 1.0)).take(sky)
    height = np.clip(view.along((0.0, 1.0, 0.0)).take(sky) / ahead, 0, 1)
    aside = view.along((1.0, 0.0, 0.0)).take(sky) / ahead
    _lay(canvas, sky, setting.wall_tones, (1 - height) * (1 - height))
    cloud = np.clip(_smooth(setting.noise, aside * 5, height * 12) * 2 - 1, 0, 0.8)
    for colour in canvas.colour:
        tone = colour[sky]
        colour[sky] = tone + cloud * (np.float32(0.93) - tone)


def _paint_object(view: View, setting: Setting, item: SceneObject, code: int, canvas: _Canvas) -> None:
    window = view.window(item)
    inside = view.owner[window] == code
    places = np.arange(view.owner.size).reshape(view.owner.shape)[window][inside]
    start, rays = view.local(item, window)
    rays = [part[inside] for part in rays]
    away = view.depth.take(places)
    point = [origin + away * part for origin, part in zip(start, rays, strict=True)]

    base = linear(COLOURS[item.colour])
    lift, fall = (0.11, 0.8) if item.colour == "black" else (0.0, 0.42)
    second = (lift + fall * base[0], lift + fall * base[1], lift + fall * base[2])
    # In metres, not in radii, so that a pattern looks finer on a larger object.
    across, up, along = (part * np.float32(item.radius / 0.36) for part in point)
    share: Any = 0.0
    if item.texture == "striped":
        share = _odd(up + 0.4 * across)
    elif item.texture == "checked":
        share = _odd(across + 0.5) ^ _odd(up + 0.5) ^ _odd(along + 0.5)
    elif item.texture == "dotted":
        off = [part - np.floor(part) - 0.5 for part in (across * 0.85, up * 0.85, along * 0.85)]
        share = inner(off, off) < 0.16
    _lay(canvas, places, (base, second), share)

    normal = NORMAL[item.shape](point)
    light = [np.float32(dot(setting.light, axis)) for axis in item.axes]
    canvas.sunlit[places] = np.maximum(inner(normal, light), 0)
    canvas.ambient[places] = 0.72 + 0.28 * inner(normal, [np.float32(axis[1]) for axis in item.axes])
    if item.glossy:
        canvas.shine[places] = _highlight(normal, rays, light)


def _highlight(normal: Triple, rays: Triple, light: Triple) -> Array:
    """Blinn's highlight with exponent 32."""
    length = np.sqrt(inner(rays, rays))
    half = [toward - part / length for toward, part in zip(light, rays, strict=True)]
    cosine = np.maximum(inner(normal, half) / np.sqrt(inner(half, half)), 0)
    for _ in range(5):
        cosine *= cosine
    return np.float32(0.45) * cosine


def _cast_shadows(view: View, setting: Setting, objects: list[SceneObject], canvas: _Canvas) -> None:
    """Take the sun from every point whose way to it another object blocks."""
    x, y, z = setting.light
    level = math.sqrt(x * x + z * z)
    sideways: Vector = (z / level, 0.0, -x / level)
    frame = (sideways, (-x * y / level, level, -z * y / level), setting.light)
    lit = np.flatnonzero(canvas.sunlit)
    owner = view.owner.take(lit)
    points = [(view.depth * view.along(axis)).take(lit) for axis in frame]  # as the sun sees them
    for number, item in enumerate(objects):
        bound = BOUND[item.shape] * item.radius
        apart = add(item.position, (0.0, view.camera.height, 0.0), -1.0)
        centre = [np.float32(dot(apart, axis)) for axis in frame]
        aside, over = points[0] - centre[0], points[1] - centre[1]
        near = aside * aside + over * over < np.float32(bound * bound)
        near &= points[2] < centre[2] + np.float32(bound)
        near &= owner != FIRST_OBJECT + number
        chosen = np.flatnonzero(near)
        off = [part.take(chosen) - middle for part, middle in zip(points, centre, strict=True)]
        turned = [[np.float32(dot(way, axis) / item.radius) for way in frame] for axis in item.axes]
        t = HIT[item.shape]([inner(off, row) for row in turned], [row[2] for row in turned])
        blocked = lit[chosen[t < np.inf]]
        canvas.sunlit[blocked] = 0
        canvas.shine[blocked] = 0


def _lay(canvas: _Canvas, places: NDArray[np.intp], tones: tuple[Vector, Vector], share: Any) -> None:
    """Colour these rays from the first tone (share 0) to the second (share 1)."""
    for colour, a, b in zip(canvas.colour, *tones, strict=True):
        colour[places] = np.float32(a) + share * np.float32(b - a)


def _odd(place: Array) -> NDArray[np.bool_]:
    return (np.floor(place).astype(np.int32) & 1).astype(bool)


def _smooth(table: Array, u: Array, v: Array) -> Array:
    """Smooth noise from 0 to 1: the table repeated over the plane, interpolated between its entries."""
    left, top = np.floor(u), np.floor(v)
    u, v = u - left, v - top
    above, below = _cell(table, left, top), _cell(table, left, top + 1)
    above = above + u * (_cell(table, left + 1, top) - above)
    below = below + u * (_cell(table, left + 1, top + 1) - below)
    return above + v * (below - above)


def _cell(table: Array, column: Array, row: Array) -> Array:
    side = len(table)
    return table.take((row.astype(np.intp) & (side - 1)) * side + (column.astype(np.intp) & (side - 1)))
