"""What stands where in a scene: camera, surroundings, objects."""

from dataclasses import dataclass

from innervision.world.scenes.dice import Dice
from innervision.world.scenes.scene import COLOURS, SHAPES, SIZES, TEXTURES, Camera, SceneObject
from innervision.world.scenes.shapes import BOUND, HALF_HEIGHT
from innervision.world.scenes.vectors import Array, Vector, add, dot, scale


@dataclass(frozen=True)
class Setting:
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


def compose(dice: Dice, size: int) -> tuple[Camera, Setting, list[SceneObject]]:
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


def _furnish(dice: Dice) -> Setting:
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
    return Setting(
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
        level = HALF_HEIGHT[shape] * radius
        y = ((level - camera.height) / depth - camera.forward[1] - camera.right[1] * x) / camera.down[1]
        row = y * camera.focal + size / 2
    position = add((0.0, camera.height, 0.0), _mix(camera, x, y), depth)
    clearance = position[1] - BOUND[shape] * radius
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
    y, z = add(scale(y, lean_cos), z, lean_sin), add(scale(z, lean_cos), y, -lean_sin)
    lean_cos, lean_sin = dice.turn(0.16 if floating else 0.0)
    x, y = add(scale(x, lean_cos), y, lean_sin), add(scale(y, lean_cos), x, -lean_sin)
    return x, y, z


def _fits(new: SceneObject, others: list[SceneObject], setting: Setting, camera: Camera) -> bool:
    """Whether the new object touches nothing in space and neither hides nor is hidden too much."""
    reach = BOUND[new.shape] * new.radius
    x, _, z = new.position
    if any(x * wall[0] + z * wall[1] + reach > wall[2] for wall in setting.walls):
        return False
    in_pixels = camera.focal * new.radius / new.depth
    for other in others:
        apart = add(new.position, other.position, -1.0)
        touching = reach + BOUND[other.shape] * other.radius
        if dot(apart, apart) < touching * touching:
            return False
        hiding = 0.6 * (in_pixels + camera.focal * other.radius / other.depth)
        down, aside = new.pixel[0] - other.pixel[0], new.pixel[1] - other.pixel[1]
        if down * down + aside * aside < hiding * hiding:
            return False
    return True


def _mix(camera: Camera, x: float, y: float) -> Vector:
    return add(add(camera.forward, camera.right, x), camera.down, y)


def linear(colour: Vector) -> Vector:
    """Display value to light: a gamma of 2, which needs no power function."""
    return (colour[0] * colour[0], colour[1] * colour[1], colour[2] * colour[2])


def _linear_pair(tones: tuple[Vector, Vector]) -> tuple[Vector, Vector]:
    return linear(tones[0]), linear(tones[1])
