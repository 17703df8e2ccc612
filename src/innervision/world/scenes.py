"""A seeded renderer: shaded objects in a room or on grass, with metric depth, panoptic map and captions.

World coordinates are metres, x to the right, y up, z ahead of the camera; the floor is y = 0 and the camera
stands above the origin. Depth is measured along the optical axis (z-depth, not the length of the ray).

A scene depends on the seed and the index alone. Draws come from the raw stream of PCG64, which NumPy keeps
stable, and after that only + − × ÷ √ and comparisons are used, which IEEE 754 rounds alike on every machine:
no sine, no power, no matrix product, no sum whose order the library chooses.

    scene = render(seed=0, index=1)
    scene.image, scene.depth, scene.captions[0]
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

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

VOCABULARY = tuple(
    sorted(
        {*SHAPES, *COLOURS, *TEXTURES[1:], *SIZES}
        | {word for relation in RELATIONS for word in relation.split()}
        | set("a an and the is are there with on floats floor grass room meadow ; , .".split())  # noqa: SIM905
    )
)
"""Every word and mark that a caption can hold."""

NAMED_FROM = 0.4
"""Captions name an object when at least this share of its outline in the image is not hidden."""

Vector = tuple[float, float, float]
Array = NDArray[np.float32]
_Triple = Sequence[Any]  # three components, arrays or numbers
T = TypeVar("T")


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
        return _HALF_HEIGHT[self.shape] * self.radius


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


class Dice:
    """Random draws that are the same in every release of NumPy and on every machine."""

    def __init__(self, *key: int) -> None:
        self._raw = np.random.PCG64(np.random.SeedSequence(key)).random_raw

    def unit(self) -> float:
        """A number in [0, 1)."""
        return (self._raw() >> 11) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.unit() * len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        items = list(items)
        for last in range(len(items) - 1, 0, -1):
            other = int(self.unit() * (last + 1))
            items[last], items[other] = items[other], items[last]
        return items

    def turn(self, limit: float) -> tuple[float, float]:
        """Cosine and sine of an angle of at most 2·atan(limit) to either side, without calling either."""
        half = self.between(-limit, limit)
        return (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)

    def table(self, side: int) -> Array:
        """A square table of numbers in [0, 1)."""
        return (self._raw(side * side) >> 40).astype(np.float32).reshape(side, side) * np.float32(2.0**-24)


def render(seed: int, index: int, size: int = 112) -> Scene:
    """Draw scene `index` of the world `seed`; both are non-negative, `size` is the side in pixels.

    Depth and panoptic map belong to the ray through a pixel's centre, colours are the mean of three rays.
    """
    dice = Dice(seed, index)
    camera, setting, objects = _compose(dice, size)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        view = _trace(camera, setting, objects, size, _SPREAD)
        image = _photograph(view, setting, objects)
    panoptic, segments, objects = _segment(view, setting, objects)
    captions = _captions(dice, objects, setting, size)
    return Scene(image, view.depth[0].copy(), panoptic, segments, objects, captions, camera, setting.place)


def depth_map(seed: int, index: int, size: int = 112) -> Array:
    """`render(seed, index, size).depth` without the picture, several times faster."""  # (H, W)
    camera, setting, objects = _compose(Dice(seed, index), size)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return _trace(camera, setting, objects, size, _CENTRE).depth[0]


def relations(a: SceneObject, b: SceneObject, size: int = 112) -> list[str]:
    """The relations "a is … b" that are true and clear to see.

    Left and right go by the centres in the image (8% of its width apart), front and behind by the depth of
    the centres (12% apart), above and below by the height of one centre over the other's top, where the image
    shows it higher too. Where nothing is clear, left or right decides, however near.
    """
    found = []
    aside = b.pixel[1] - a.pixel[1]
    if abs(aside) > 0.08 * size:
        found.append("left of" if aside > 0 else "right of")
    if max(a.depth, b.depth) > 1.12 * min(a.depth, b.depth):
        found.append("in front of" if a.depth < b.depth else "behind")
    higher = a.position[1] - b.position[1]
    top = b.half_height if higher > 0 else a.half_height
    if abs(higher) > top and higher * (b.pixel[0] - a.pixel[0]) > 0:
        found.append("above" if higher > 0 else "below")
    return found or ["left of" if aside > 0 else "right of"]


# --- composing: what stands where ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Setting:
    """Everything but the objects. A wall is (x, z, distance): where x · X + z · Z = distance."""

    place: str
    walls: list[Vector]
    ground_tones: tuple[Vector, Vector]
    ground_pattern: str
    wall_tones: tuple[Vector, Vector]
    wall_pattern: str
    across: tuple[float, float]  # direction (x, z) that floor patterns follow
    noise: Array  # (32, 32)
    light: Vector  # unit vector towards the sun or lamp
    sun: Vector  # its strength in red, green, blue
    ambient: Vector


_FLOORS = [
    ((0.78, 0.73, 0.66), (0.60, 0.54, 0.47)),
    ((0.74, 0.75, 0.77), (0.52, 0.54, 0.57)),
    ((0.70, 0.58, 0.46), (0.59, 0.47, 0.36)),
    ((0.66, 0.70, 0.68), (0.46, 0.50, 0.49)),
    ((0.80, 0.76, 0.75), (0.62, 0.50, 0.48)),
]
_WALLS = [
    ((0.80, 0.76, 0.68), (0.74, 0.69, 0.60)),
    ((0.66, 0.74, 0.80), (0.59, 0.68, 0.75)),
    ((0.72, 0.77, 0.70), (0.65, 0.71, 0.63)),
    ((0.80, 0.70, 0.68), (0.74, 0.63, 0.60)),
    ((0.70, 0.70, 0.74), (0.63, 0.63, 0.68)),
]
_GRASS = [((0.62, 0.68, 0.40), (0.50, 0.58, 0.32)), ((0.70, 0.68, 0.46), (0.58, 0.57, 0.36))]
_SKY = [((0.40, 0.60, 0.88), (0.82, 0.89, 0.95)), ((0.55, 0.64, 0.78), (0.92, 0.86, 0.78))]

# In units of the radius: how far the shape reaches from its centre, and from its centre to its foot.
_BOUND = {"sphere": 1.0, "cube": 1.42, "cylinder": 1.21, "cone": 1.39, "ring": 1.18, "cross": 1.22}
_HALF_HEIGHT = {"sphere": 1.0, "cube": 0.82, "cylinder": 1.0, "cone": 1.0, "ring": 1.12, "cross": 1.1}


def _compose(dice: Dice, size: int) -> tuple[Camera, _Setting, list[SceneObject]]:
    camera = _aim(dice, size)
    setting = _furnish(dice)
    count = 1 + int(dice.unit() * 5)
    colours = dice.shuffled(list(COLOURS))[:count]
    objects: list[SceneObject] = []
    for colour in colours:
        # The first one must find its place; a later one that does not find any is left out.
        for _ in range(60 if objects else 10_000):
            candidate = _propose(dice, camera, colour, count, size)
            if candidate is not None and _fits(candidate, objects, setting, camera):
                objects.append(candidate)
                break
    return camera, setting, objects


def _aim(dice: Dice, size: int) -> Camera:
    """A camera 1.1 to 3.4 m high that looks level to 24° down, rolled by at most 6°."""
    cos_roll, sin_roll = dice.turn(0.052)
    half = dice.between(0.0, 0.21)
    cos, sin = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    up = (0.0, cos, sin)
    return Camera(
        height=dice.between(1.1, 3.4),
        focal=size * dice.between(0.85, 1.1),
        right=(cos_roll, sin_roll * up[1], sin_roll * up[2]),
        down=(sin_roll, -cos_roll * up[1], -cos_roll * up[2]),
        forward=(0.0, -sin, cos),
    )


def _furnish(dice: Dice) -> _Setting:
    indoor = dice.unit() < 0.5
    yaw_cos, yaw_sin = dice.turn(0.3)
    walls = []
    if indoor:
        walls.append((yaw_sin, yaw_cos, dice.between(7.5, 13.0)))
        side = dice.pick([-1, 0, 1])
        if side:
            walls.append((side * yaw_cos, -side * yaw_sin, dice.between(3.5, 7.0)))
    # The light comes from the camera's side, so that what is seen is mostly lit.
    azimuth_cos, azimuth_sin = dice.turn(1.0)
    height_cos, height_sin = dice.turn(0.16)
    rise = (0.766 * height_cos - 0.643 * height_sin, 0.643 * height_cos + 0.766 * height_sin)  # 40° ± 18°
    warmth = dice.between(-0.07, 0.07)
    strength, ambient = dice.between(0.65, 0.95), dice.between(0.30, 0.45)
    return _Setting(
        place="indoor" if indoor else "outdoor",
        walls=walls,
        ground_tones=_linear_pair(dice.pick(_FLOORS if indoor else _GRASS)),
        ground_pattern=dice.pick(["checks", "planks", "plain"]) if indoor else "grass",
        wall_tones=_linear_pair(dice.pick(_WALLS if indoor else _SKY)),
        wall_pattern=dice.pick(["plain", "panels", "bricks"]),
        across=(yaw_cos, -yaw_sin),
        noise=dice.table(32),
        light=(azimuth_sin * rise[0], rise[1], -azimuth_cos * rise[0]),
        sun=(strength * (1 + warmth), strength, strength * (1 - warmth)),
        ambient=(ambient * (1 - warmth), ambient, ambient * (1 + warmth)),
    )


def _propose(dice: Dice, camera: Camera, colour: str, count: int, size: int) -> SceneObject | None:
    """Draw an object by its place and size in the image; none where such a one would not rest or float."""
    shape, texture, size_name = dice.pick(SHAPES), dice.pick(TEXTURES), dice.pick(list(SIZES))
    floating, glossy = dice.unit() < 0.45, dice.unit() < 0.5
    radius = dice.between(*SIZES[size_name])
    in_pixels = dice.between(0.12, 0.30 - 0.022 * count) * size
    depth = camera.focal * radius / in_pixels
    axes = _orient(dice, shape, floating)
    margin = 0.85 * in_pixels
    column, row = dice.between(margin, size - margin), dice.between(margin, size - margin)
    x, y = (column - size / 2) / camera.focal, (row - size / 2) / camera.focal
    if not floating:
        level = _HALF_HEIGHT[shape] * radius
        y = ((level - camera.height) / depth - camera.forward[1] - camera.right[1] * x) / camera.down[1]
        row = y * camera.focal + size / 2
    position = _add((0.0, camera.height, 0.0), _mix(camera, x, y), depth)
    clearance = position[1] - _BOUND[shape] * radius
    if not margin <= row <= size - margin or (floating and clearance < 0.2):
        return None
    return SceneObject(
        shape,
        colour,
        texture,
        size_name,
        glossy,
        floating,
        radius,
        position,
        axes,
        depth,
        (row - 0.5, column - 0.5),
    )


def _orient(dice: Dice, shape: str, floating: bool) -> tuple[Vector, Vector, Vector]:
    """Turn about the vertical (a ring or cross stays nearly face on); what floats may also lean by 18°."""
    cos, sin = dice.turn(0.3 if shape in ("ring", "cross") else 0.4)
    lean_cos, lean_sin = dice.turn(0.16 if floating else 0.0)
    x: Vector = (cos, 0.0, -sin)
    y: Vector = (0.0, 1.0, 0.0)
    z: Vector = (sin, 0.0, cos)
    y, z = _add(_scale(y, lean_cos), z, lean_sin), _add(_scale(z, lean_cos), y, -lean_sin)
    lean_cos, lean_sin = dice.turn(0.16 if floating else 0.0)
    x, y = _add(_scale(x, lean_cos), y, lean_sin), _add(_scale(y, lean_cos), x, -lean_sin)
    return x, y, z


def _fits(new: SceneObject, others: list[SceneObject], setting: _Setting, camera: Camera) -> bool:
    """Whether the new object touches nothing in space and neither hides nor is hidden too much."""
    reach = _BOUND[new.shape] * new.radius
    x, _, z = new.position
    if any(x * wall[0] + z * wall[1] + reach > wall[2] for wall in setting.walls):
        return False
    in_pixels = camera.focal * new.radius / new.depth
    for other in others:
        apart = _add(new.position, other.position, -1.0)
        touching = reach + _BOUND[other.shape] * other.radius
        if _dot(apart, apart) < touching * touching:
            return False
        hiding = 0.6 * (in_pixels + camera.focal * other.radius / other.depth)
        down, aside = new.pixel[0] - other.pixel[0], new.pixel[1] - other.pixel[1]
        if down * down + aside * aside < hiding * hiding:
            return False
    return True


# --- tracing: what each ray meets ---------------------------------------------------------------------------

_GROUND, _SKY_CODE, _FIRST_WALL, _FIRST_OBJECT = 0, 1, 2, 4
_CENTRE = [(0.5, 0.5)]
_SPREAD = [(0.5, 0.5), (0.83, 0.17), (0.17, 0.83)]

_Window = tuple[slice, slice, slice]
_EVERYWHERE: _Window = (slice(None), slice(None), slice(None))


@dataclass(frozen=True)
class _View:
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
            np.float32(_dot(axis, direction)) for axis in (self.camera.right, self.camera.down, self.camera.forward)
        )
        return right * self.x[:, :, window[2]] + (down * self.y[:, window[1]] + forward)

    def window(self, item: SceneObject) -> _Window:
        """The pixels that the object's bounding sphere covers: the tangents from the camera."""
        bound = _BOUND[item.shape] * item.radius
        apart = _add(item.position, (0.0, self.camera.height, 0.0), -1.0)
        squared = item.depth * item.depth - bound * bound
        slices = []
        for axis, places in ((self.camera.down, self.y[0, :, 0]), (self.camera.right, self.x[0, 0])):
            off = _dot(apart, axis)
            spread = bound * math.sqrt(max(off * off + squared, 0.0))
            low, high = (off * item.depth - spread) / squared, (off * item.depth + spread) / squared
            first, last = int(np.searchsorted(places, low)), int(np.searchsorted(places, high))
            slices.append(slice(max(first - 1, 0), last + 1))
        return slice(None), slices[0], slices[1]

    def local(self, item: SceneObject, window: _Window) -> tuple[_Triple, _Triple]:
        """The camera and its rays in the object's axes, in units of its radius; depth keeps its meaning."""
        apart = _add((0.0, self.camera.height, 0.0), item.position, -1.0)
        start = [np.float32(_dot(apart, axis) / item.radius) for axis in item.axes]
        return start, [self.along(_scale(axis, 1 / item.radius), window) for axis in item.axes]


def _trace(
    camera: Camera,
    setting: _Setting,
    objects: list[SceneObject],
    size: int,
    places: list[tuple[float, float]],
) -> _View:
    """Send rays through these (row, column) places of every pixel."""
    pixel = np.arange(size, dtype=np.float32) - np.float32(size / 2)
    x = np.stack([(pixel + np.float32(column)) / np.float32(camera.focal) for _, column in places])
    y = np.stack([(pixel + np.float32(row)) / np.float32(camera.focal) for row, _ in places])
    shape = (len(places), size, size)
    depth, owner = np.full(shape, np.float32(FAR)), np.full(shape, _SKY_CODE, np.int8)
    view = _View(camera, x[:, None, :], y[:, :, None], depth, owner, [])

    def offer(t: Array, code: int, window: _Window) -> None:
        nearer = t < depth[window]
        np.copyto(depth[window], t, where=nearer)
        np.copyto(owner[window], np.int8(code), where=nearer)

    planes: list[tuple[int, Vector, float]] = [(_GROUND, (0.0, -1.0, 0.0), camera.height)]
    planes += [(_FIRST_WALL + k, (x, 0.0, z), distance) for k, (x, z, distance) in enumerate(setting.walls)]
    for code, outward, distance in planes:
        towards = view.along(outward)
        t = np.float32(distance) / towards
        np.copyto(t, np.float32(np.inf), where=towards <= 0)
        offer(t, code, _EVERYWHERE)
    for number, item in enumerate(objects):
        window = view.window(item)
        t = _HIT[item.shape](*view.local(item, window))
        view.outlines.append(int(np.count_nonzero(t[0] < np.inf)))
        offer(t, _FIRST_OBJECT + number, window)
    return view


# Each function gives t of the first hit of start + t · ray with its shape, infinity where there is none.
# Start and ray are three components each, arrays or numbers; no ray starts within a shape.

_CUBE = (0.82, 0.82, 0.82)
_POST, _BEAM = (0.36, 1.1, 0.36), (1.1, 0.36, 0.36)
_CYLINDER_RADIUS, _CONE_RADIUS, _SLOPE = 0.68, 0.96, 0.48
_RING_OUTER, _RING_INNER, _RING_HALF_WIDTH = 1.12, 0.62, 0.32


def _hit_sphere(start: _Triple, ray: _Triple) -> Array:
    into, out = _quadric(start, ray, (0, 1, 2), 1.0)
    return np.where((into <= out) & (into > 0), into, np.float32(np.inf))


def _hit_cube(start: _Triple, ray: _Triple) -> Array:
    return _hit_box(start, ray, _CUBE)


def _hit_cross(start: _Triple, ray: _Triple) -> Array:
    return np.minimum(_hit_box(start, ray, _POST), _hit_box(start, ray, _BEAM))


def _hit_box(start: _Triple, ray: _Triple, half: Vector) -> Array:
    into, out = _slab(start[0], ray[0], half[0])
    for axis in (1, 2):
        enter, leave = _slab(start[axis], ray[axis], half[axis])
        into, out = np.maximum(into, enter), np.minimum(out, leave)
    return np.where((into <= out) & (into > 0), into, np.float32(np.inf))


def _hit_cylinder(start: _Triple, ray: _Triple) -> Array:
    into, out = _quadric(start, ray, (0, 2), _CYLINDER_RADIUS)
    enter, leave = _slab(start[1], ray[1], 1.0)
    into, out = np.maximum(into, enter), np.minimum(out, leave)
    return np.where((into <= out) & (into > 0), into, np.float32(np.inf))


def _hit_cone(start: _Triple, ray: _Triple) -> Array:
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


def _hit_ring(start: _Triple, ray: _Triple) -> Array:
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


_HIT: dict[str, Callable[[_Triple, _Triple], Array]] = {
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


def _quadric(start: _Triple, ray: _Triple, axes: tuple[int, ...], radius: float) -> tuple[Any, Any]:
    """Where the ray enters and leaves the sphere or infinite cylinder; NaN where it misses it.

    Measured from the point nearest to the centre, which keeps float32 exact where the camera is far away.
    """
    square = sum(ray[axis] * ray[axis] for axis in axes)
    middle = -sum(start[axis] * ray[axis] for axis in axes) / square
    nearest = [start[axis] + middle * ray[axis] for axis in axes]
    spread = np.sqrt((np.float32(radius * radius) - sum(part * part for part in nearest)) / square)
    return middle - spread, middle + spread


# --- painting: what colour each ray brings back -------------------------------------------------------------


@dataclass(frozen=True)
class _Canvas:
    """What the painters fill in, ray by ray."""

    colour: Array  # (3, n) of the surface, in linear light
    sunlit: Array  # (n,) cosine between surface and sun, 0 in the shade
    ambient: Array  # (n,) share of the ambient light that reaches the surface
    shine: Array  # (n,) highlight


def _photograph(view: _View, setting: _Setting, objects: list[SceneObject]) -> NDArray[np.uint8]:
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
        _paint_object(view, setting, item, _FIRST_OBJECT + number, canvas)
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


def _paint_ground(view: _View, setting: _Setting, canvas: _Canvas) -> None:
    ground = np.flatnonzero(view.owner == _GROUND)
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


def _paint_walls(view: _View, setting: _Setting, canvas: _Canvas) -> None:
    for number, (x, z, _) in enumerate(setting.walls):
        wall = np.flatnonzero(view.owner == _FIRST_WALL + number)
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


def _paint_sky(view: _View, setting: _Setting, canvas: _Canvas) -> None:
    sky = np.flatnonzero(view.owner == _SKY_CODE)
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


def _paint_object(view: _View, setting: _Setting, item: SceneObject, code: int, canvas: _Canvas) -> None:
    window = view.window(item)
    inside = view.owner[window] == code
    places = np.arange(view.owner.size).reshape(view.owner.shape)[window][inside]
    start, rays = view.local(item, window)
    rays = [part[inside] for part in rays]
    away = view.depth.take(places)
    point = [origin + away * part for origin, part in zip(start, rays, strict=True)]

    base = _linear(COLOURS[item.colour])
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
        share = _inner(off, off) < 0.16
    _lay(canvas, places, (base, second), share)

    normal = _NORMAL[item.shape](point)
    light = [np.float32(_dot(setting.light, axis)) for axis in item.axes]
    canvas.sunlit[places] = np.maximum(_inner(normal, light), 0)
    canvas.ambient[places] = 0.72 + 0.28 * _inner(normal, [np.float32(axis[1]) for axis in item.axes])
    if item.glossy:
        canvas.shine[places] = _highlight(normal, rays, light)


def _highlight(normal: _Triple, rays: _Triple, light: _Triple) -> Array:
    """Blinn's highlight with exponent 32."""
    length = np.sqrt(_inner(rays, rays))
    half = [toward - part / length for toward, part in zip(light, rays, strict=True)]
    cosine = np.maximum(_inner(normal, half) / np.sqrt(_inner(half, half)), 0)
    for _ in range(5):
        cosine *= cosine
    return np.float32(0.45) * cosine


def _cast_shadows(view: _View, setting: _Setting, objects: list[SceneObject], canvas: _Canvas) -> None:
    """Take the sun from every point whose way to it another object blocks."""
    x, y, z = setting.light
    level = math.sqrt(x * x + z * z)
    sideways: Vector = (z / level, 0.0, -x / level)
    frame = (sideways, (-x * y / level, level, -z * y / level), setting.light)
    lit = np.flatnonzero(canvas.sunlit)
    owner = view.owner.take(lit)
    points = [(view.depth * view.along(axis)).take(lit) for axis in frame]  # as the sun sees them
    for number, item in enumerate(objects):
        bound = _BOUND[item.shape] * item.radius
        apart = _add(item.position, (0.0, view.camera.height, 0.0), -1.0)
        centre = [np.float32(_dot(apart, axis)) for axis in frame]
        aside, over = points[0] - centre[0], points[1] - centre[1]
        near = aside * aside + over * over < np.float32(bound * bound)
        near &= points[2] < centre[2] + np.float32(bound)
        near &= owner != _FIRST_OBJECT + number
        chosen = np.flatnonzero(near)
        off = [part.take(chosen) - middle for part, middle in zip(points, centre, strict=True)]
        turned = [[np.float32(_dot(way, axis) / item.radius) for way in frame] for axis in item.axes]
        t = _HIT[item.shape]([_inner(off, row) for row in turned], [row[2] for row in turned])
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


# Each function gives the outward unit normal at points of the shape's surface, in its own axes.


def _normal_box(point: _Triple, half: Vector) -> _Triple:
    share = [np.abs(part) / np.float32(extent) for part, extent in zip(point, half, strict=True)]
    x = (share[0] >= share[1]) & (share[0] >= share[2])
    y = ~x & (share[1] >= share[2])
    return [np.sign(part) * here for part, here in zip(point, (x, y, ~(x | y)), strict=True)]


def _normal_cross(point: _Triple) -> _Triple:
    off = [
        np.maximum(np.maximum(*(np.abs(point[axis]) / np.float32(half[axis]) for axis in (0, 1))), 0)
        for half in (_POST, _BEAM)
    ]
    on_post = off[0] <= off[1]
    post, beam = _normal_box(point, _POST), _normal_box(point, _BEAM)
    return [np.where(on_post, a, b) for a, b in zip(post, beam, strict=True)]


def _normal_cylinder(point: _Triple) -> _Triple:
    cap = np.abs(point[1]) > 0.999
    return [
        np.where(cap, np.float32(0), point[0] / np.float32(_CYLINDER_RADIUS)),
        np.sign(point[1]) * cap,
        np.where(cap, np.float32(0), point[2] / np.float32(_CYLINDER_RADIUS)),
    ]


def _normal_cone(point: _Triple) -> _Triple:
    base = point[1] < -0.999
    off = np.sqrt(point[0] * point[0] + point[2] * point[2]) + np.float32(1e-6)
    length = np.float32(1 / math.sqrt(1 + _SLOPE * _SLOPE))
    side = np.where(base, np.float32(0), length / off)
    return [point[0] * side, np.where(base, np.float32(-1), length * np.float32(_SLOPE)), point[2] * side]


def _normal_ring(point: _Triple) -> _Triple:
    rim = np.abs(point[2]) > np.float32(0.999 * _RING_HALF_WIDTH)
    off = np.sqrt(point[0] * point[0] + point[1] * point[1])
    outside = off > np.float32((_RING_OUTER + _RING_INNER) / 2)
    side = np.where(rim, np.float32(0), np.where(outside, np.float32(1), np.float32(-1)) / off)
    return [point[0] * side, point[1] * side, np.sign(point[2]) * rim]


_NORMAL: dict[str, Callable[[_Triple], _Triple]] = {
    "sphere": lambda point: point,
    "cube": lambda point: _normal_box(point, _CUBE),
    "cylinder": _normal_cylinder,
    "cone": _normal_cone,
    "ring": _normal_ring,
    "cross": _normal_cross,
}


# --- naming: segments and captions --------------------------------------------------------------------------

_CATEGORY_ID = {category["name"]: category["id"] for category in CATEGORIES}


def _segment(
    view: _View, setting: _Setting, objects: list[SceneObject]
) -> tuple[NDArray[np.int32], list[Segment], list[SceneObject]]:
    """Number the regions from 1, the objects in their order first, then the stuff."""
    owner = view.owner[0]
    ground = "floor" if setting.place == "indoor" else "grass"
    regions = [(item.shape, owner == _FIRST_OBJECT + number) for number, item in enumerate(objects)]
    walls = (owner >= _FIRST_WALL) & (owner < _FIRST_OBJECT)
    regions += [(ground, owner == _GROUND), ("wall", walls), ("sky", owner == _SKY_CODE)]
    panoptic = np.zeros(owner.shape, np.int32)
    segments: list[Segment] = []
    seen = []
    for number, (name, here) in enumerate(regions):
        area = int(np.count_nonzero(here))
        thing = number < len(objects)
        identity = len(segments) + 1 if area else 0
        if thing:
            share = area / max(view.outlines[number], 1)
            seen.append(replace(objects[number], visibility=share, area=area, segment_id=identity))
        if area:
            panoptic[here] = identity
            rows, columns = np.flatnonzero(here.any(1)), np.flatnonzero(here.any(0))
            left, top = int(columns[0]), int(rows[0])
            box = (left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)
            segments.append(Segment(identity, _CATEGORY_ID[name], thing, area, box))
    return panoptic, segments, seen


def _captions(dice: Dice, objects: list[SceneObject], setting: _Setting, size: int) -> list[str]:
    """Five sentences that name every object in plain sight, the largest in the image first.

    The relation is always between the first two that are named, so that both are known before it comes; all
    but the first sentence draw these two anew.
    """
    named = sorted((item for item in objects if item.named), key=lambda item: -item.area)
    ground, place = ("floor", "room") if setting.place == "indoor" else ("grass", "meadow")
    captions = []
    for variant in range(5):
        order = named
        if variant and len(named) > 1:
            first, second = dice.shuffled(named)[:2]
            order = [first, second, *(item for item in named if item is not first and item is not second)]
        listing = _listing(order, variant)
        if variant == 1:
            listing = f"there {'is' if len(order) == 1 else 'are'} {listing}"
        elif variant == 2:
            listing = f"a {place} with {listing}"
        captions.append(f"{listing}; {_clause(dice, order, ground, size)}.")
    return captions


def _listing(order: list[SceneObject], variant: int) -> str:
    """Name the objects like "a red cube and an orange ring"; the last variants add textures or sizes."""
    phrases = []
    for item in order:
        words = [item.colour, item.shape]
        if variant == 3 and item.texture != "plain":
            words.insert(0, item.texture)
        elif variant == 4:
            words.insert(0, item.size)
        phrases.append(" ".join(["an" if words[0][0] in "aeiou" else "a", *words]))
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _clause(dice: Dice, order: list[SceneObject], ground: str, size: int) -> str:
    subject = f"the {order[0].colour} {order[0].shape}"
    if len(order) == 1:
        return f"{subject} {'floats above' if order[0].floating else 'is on'} the {ground}"
    relation = dice.pick(relations(order[0], order[1], size))
    return f"{subject} is {relation} the {order[1].colour} {order[1].shape}"


# --- small vectors and colours ------------------------------------------------------------------------------


def _dot(a: Vector, b: Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _scale(a: Vector, factor: float) -> Vector:
    return (a[0] * factor, a[1] * factor, a[2] * factor)


def _add(a: Vector, b: Vector, factor: float) -> Vector:
    """A + factor · b."""
    return (a[0] + factor * b[0], a[1] + factor * b[1], a[2] + factor * b[2])


def _mix(camera: Camera, x: float, y: float) -> Vector:
    return _add(_add(camera.forward, camera.right, x), camera.down, y)


def _linear(colour: Vector) -> Vector:
    """Display value to light: a gamma of 2, which needs no power function."""
    return (colour[0] * colour[0], colour[1] * colour[1], colour[2] * colour[2])


def _linear_pair(tones: tuple[Vector, Vector]) -> tuple[Vector, Vector]:
    return _linear(tones[0]), _linear(tones[1])


def _inner(a: _Triple, b: _Triple) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
