"""The renderer against closed forms: what is seen, how far it is, and what is said about it."""

import hashlib
import re
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from innervision.world.scenes import (
    CATEGORIES,
    COLOURS,
    FAR,
    RELATIONS,
    SHAPES,
    TEXTURES,
    VOCABULARY,
    Camera,
    Scene,
    SceneObject,
    depth_map,
    relations,
    render,
)

OPPOSITE = {
    "left of": "right of",
    "right of": "left of",
    "in front of": "behind",
    "behind": "in front of",
    "above": "below",
    "below": "above",
}
PHRASE = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")


@cache
def some_scenes() -> list[Scene]:
    return [render(seed=3, index=index) for index in range(150)]


def rays(camera: Camera, size: int) -> NDArray[np.float64]:
    """The documented rays, one through each pixel's centre."""  # (H, W, 3)
    place = (np.arange(size) + 0.5 - size / 2) / camera.focal
    column, row = np.meshgrid(place, place)
    return (
        np.array(camera.forward) + column[..., None] * np.array(camera.right) + row[..., None] * np.array(camera.down)
    )


def sphere_depth(scene: Scene, sphere: SceneObject) -> NDArray[np.float64]:
    """Depth at which each ray enters the sphere, infinity where it misses: |start + t · ray|² = radius²."""
    ray = rays(scene.camera, len(scene.depth))
    start = np.array([0, scene.camera.height, 0]) - np.array(sphere.position)
    a, b, c = (ray * ray).sum(-1), ray @ start, start @ start - sphere.radius**2
    root = b * b - a * c
    return np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)


def local_points(scene: Scene, item: SceneObject) -> NDArray[np.float64]:
    """Where the rays of an object's pixels end, in the object's axes and radii."""  # (n, 3)
    here = scene.panoptic == item.segment_id
    points = rays(scene.camera, len(scene.depth))[here] * scene.depth[here][:, None]
    points += np.array([0, scene.camera.height, 0]) - np.array(item.position)
    return points @ np.array(item.axes).T / item.radius


def seen(shape: str) -> list[tuple[Scene, SceneObject]]:
    return [(s, o) for s in some_scenes() for o in s.objects if o.shape == shape and o.segment_id]


def category(scene: Scene, name: str) -> NDArray[np.bool_]:
    number = next(c["id"] for c in CATEGORIES if c["name"] == name)
    return np.isin(scene.panoptic, [s.id for s in scene.segments if s.category_id == number])


def test_depth_of_a_sphere_is_where_its_ray_enters_it() -> None:
    checked = 0
    for scene, sphere in seen("sphere"):
        here = scene.panoptic == sphere.segment_id
        expected = sphere_depth(scene, sphere)[here]
        clear = expected < np.inf  # a grazing ray may hit in one precision and miss in the other
        assert clear.mean() > 0.97
        np.testing.assert_allclose(scene.depth[here][clear], expected[clear], rtol=2e-3)
        assert np.median(abs(scene.depth[here][clear] / expected[clear] - 1)) < 1e-5
        checked += 1
    assert checked > 50


@pytest.mark.parametrize("ground", ["floor", "grass"])
def test_depth_of_the_ground_is_where_its_ray_has_come_down(ground: str) -> None:
    pixels = 0
    for scene in some_scenes():
        here = category(scene, ground)
        expected = scene.camera.height / -rays(scene.camera, 112)[here][:, 1]
        np.testing.assert_allclose(scene.depth[here], expected, rtol=1e-3)
        pixels += here.sum()
    assert pixels > 100_000


def test_walls_are_upright_planes() -> None:
    for scene in some_scenes()[:40]:
        here = category(scene, "wall")
        if here.sum() < 100:
            continue
        points = (rays(scene.camera, 112)[here] * scene.depth[here][:, None])[:, [0, 2]]
        # One wall, or two at right angles: in the plan each point lies on one of at most two lines.
        on_line = []
        for _ in range(2):
            if len(points) < 3:
                break
            a, b = points[0], points[np.argmax(np.abs(points - points[0]).sum(1) * near(points))]
            along = (b - a) / np.linalg.norm(b - a)
            off = np.abs((points - a) @ np.array([-along[1], along[0]]))
            on_line.append((off < 0.02).sum())
            points = points[off >= 0.02]
        assert len(points) < 0.02 * here.sum()


def near(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Points close enough to the first one to be on the same wall, wherever the corner is."""
    return np.abs(points - points[0]).sum(1) < 0.5


def test_sky_is_far() -> None:
    for scene in some_scenes():
        assert (scene.depth[category(scene, "sky")] == FAR).all()
        assert (scene.depth <= FAR).all()
        assert (scene.depth > 0.5).all()


def test_nearest_object_wins_the_pixel() -> None:
    hidden = 0
    for scene, sphere in seen("sphere"):
        alone = sphere_depth(scene, sphere)
        hit = alone < np.inf
        mine = scene.panoptic == sphere.segment_id
        assert (scene.depth[hit] <= alone[hit] * 1.002).all()
        lost = hit & ~mine
        assert (scene.depth[lost] < alone[lost]).mean() > 0.9 if lost.sum() > 10 else True
        hidden += lost.sum()
        np.testing.assert_allclose(sphere.visibility, mine.sum() / hit.sum(), atol=0.03)
    assert hidden > 500


def test_points_of_a_cube_lie_on_six_equal_faces() -> None:
    for scene, cube in seen("cube"):
        reach = np.abs(local_points(scene, cube)).max(1)
        np.testing.assert_allclose(reach, 0.82, rtol=2e-3)


def test_points_of_a_cylinder_lie_on_its_side_or_its_caps() -> None:
    for scene, cylinder in seen("cylinder"):
        x, y, z = local_points(scene, cylinder).T
        off_side, off_cap = np.abs(np.hypot(x, z) - 0.68), np.abs(np.abs(y) - 1)
        assert np.quantile(np.minimum(off_side, off_cap), 0.98) < 2e-3
        assert (np.abs(y) < 1.002).all()


def test_points_of_a_cone_lie_on_its_slope_or_its_base() -> None:
    for scene, cone in seen("cone"):
        x, y, z = local_points(scene, cone).T
        off = np.minimum(np.abs(np.hypot(x, z) - 0.48 * (1 - y)), np.abs(y + 1))
        assert np.quantile(off, 0.98) < 2e-3


def test_a_ring_has_a_hole_through_which_one_sees() -> None:
    through = 0
    for scene, ring in seen("ring"):
        x, y, z = local_points(scene, ring).T
        off = np.hypot(x, y)
        assert off.min() > 0.61
        assert off.max() < 1.13
        assert np.abs(z).max() < 0.33
        row, column = (round(place) for place in ring.pixel)
        through += scene.panoptic[row, column] != ring.segment_id
    assert through > 0.9 * len(seen("ring"))


def test_points_of_a_cross_lie_in_one_of_its_two_bars() -> None:
    for scene, cross in seen("cross"):
        x, y, z = np.abs(local_points(scene, cross).T)
        short = np.minimum(x, y)
        assert np.quantile(short, 0.98) < 0.362
        assert np.quantile(z, 0.98) < 0.362
        assert max(x.max(), y.max()) < 1.11


def test_what_does_not_float_stands_on_the_floor() -> None:
    for scene, sphere in seen("sphere"):
        lowest = sphere.position[1] - sphere.radius
        assert lowest > 0.1 if sphere.floating else abs(lowest) < 1e-9
        assert scene.camera.height > 1
    floating = [item.floating for scene in some_scenes() for item in scene.objects]
    assert 0.25 < np.mean(floating) < 0.6


def test_objects_do_not_touch() -> None:
    for scene in some_scenes():
        for number, a in enumerate(scene.objects):
            for b in scene.objects[:number]:
                apart = np.linalg.norm(np.subtract(a.position, b.position))
                assert apart > a.radius + b.radius


def test_centre_of_an_object_is_where_the_camera_projects_it() -> None:
    for scene in some_scenes():
        for item in scene.objects:
            off = np.array(item.position) - [0, scene.camera.height, 0]
            depth = off @ np.array(scene.camera.forward)
            column = off @ np.array(scene.camera.right) / depth * scene.camera.focal + 56 - 0.5
            row = off @ np.array(scene.camera.down) / depth * scene.camera.focal + 56 - 0.5
            np.testing.assert_allclose([item.depth, *item.pixel], [depth, row, column], rtol=1e-6)


def test_one_to_five_objects_of_different_colours() -> None:
    counts = set()
    for scene in some_scenes():
        counts.add(len(scene.objects))
        colours = [item.colour for item in scene.objects]
        assert len(set(colours)) == len(colours)
    assert counts == {1, 2, 3, 4, 5}


def test_everything_the_world_has_occurs() -> None:
    items = [item for scene in some_scenes() for item in scene.objects]
    assert {item.shape for item in items} == set(SHAPES)
    assert {item.colour for item in items} == set(COLOURS)
    assert {item.texture for item in items} == set(TEXTURES)
    categories = {segment.category_id for scene in some_scenes() for segment in scene.segments}
    assert categories == {category["id"] for category in CATEGORIES}


def test_objects_are_large_enough_to_tell_their_shape() -> None:
    boxes = [s.bbox[2:] for scene in some_scenes() for s in scene.segments if s.isthing and s.area > 100]
    longer = [max(box) for box in boxes]
    assert np.quantile(longer, 0.05) >= 24
    assert np.quantile(longer, 0.95) <= 75


def test_colours_can_be_told_apart_by_their_hue() -> None:
    means, names = [], []
    for scene in some_scenes():
        for item in scene.objects:
            if item.named:
                pixels = scene.image[scene.panoptic == item.segment_id].astype(float)
                means.append(np.median(pixels, axis=0))
                names.append(item.colour)
    found, names = np.array(means), np.array(names)
    brightness = found.max(1, keepdims=True)
    looks = np.concatenate([found / brightness * 255, brightness * 0.7], axis=1)
    half = len(names) // 2
    centres = {c: np.median(looks[:half][names[:half] == c], axis=0) for c in COLOURS}
    guesses = [min(centres, key=lambda c: np.linalg.norm(look - centres[c])) for look in looks[half:]]
    assert np.mean(np.array(guesses) == names[half:]) > 0.93


def test_segments_are_the_regions_of_the_map() -> None:
    for scene in some_scenes():
        assert {segment.id for segment in scene.segments} == set(np.unique(scene.panoptic))
        for segment in scene.segments:
            rows, columns = np.nonzero(scene.panoptic == segment.id)
            left, top, width, height = segment.bbox
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())
            assert segment.area == len(rows)
            assert segment.isthing == (CATEGORIES[segment.category_id - 1]["isthing"] == 1)
        for item in scene.objects:
            assert item.area == (scene.panoptic == item.segment_id).sum() or item.segment_id == 0


def test_captions_name_exactly_what_is_in_plain_sight() -> None:
    unnamed = 0
    for scene in some_scenes():
        expected = {(o.colour, o.shape) for o in scene.objects if o.area and o.visibility >= 0.4}
        unnamed += len(scene.objects) - len(expected)
        assert len(scene.captions) == 5
        for caption in scene.captions:
            listing = caption.split(";")[0]
            found = PHRASE.findall(listing)
            assert len(found) == len(expected)
            assert set(found) == expected
    assert unnamed > 0


def test_the_first_caption_names_the_largest_first() -> None:
    for scene in some_scenes():
        named = sorted((o for o in scene.objects if o.named), key=lambda o: -o.area)
        assert PHRASE.findall(scene.captions[0])[: len(named)] == [(o.colour, o.shape) for o in named]


def test_captions_name_both_objects_before_their_relation() -> None:
    for scene in some_scenes():
        for caption in scene.captions:
            listing, clause = caption.split(";")
            subjects = PHRASE.findall(clause)
            assert subjects == PHRASE.findall(listing)[: len(subjects)]


def test_relations_in_captions_are_true() -> None:
    told = dict.fromkeys(RELATIONS, 0)
    for scene in some_scenes():
        by_name = {(item.colour, item.shape): item for item in scene.objects}
        for caption in scene.captions:
            clause = caption.split(";")[1]
            items = [by_name[name] for name in PHRASE.findall(clause)]
            if len(items) == 1:
                assert ("floats above" in clause) == items[0].floating
                continue
            a, b = items
            relation = next(word for word in RELATIONS if f" is {word} " in clause)
            told[relation] += 1
            off = np.subtract(b.position, a.position)
            if relation in ("left of", "right of"):
                places = [
                    (np.array(o.position) - [0, scene.camera.height, 0]) @ np.array(scene.camera.right) / o.depth
                    for o in (a, b)
                ]
                assert (places[0] < places[1]) == (relation == "left of")
            elif relation in ("in front of", "behind"):
                assert (off @ np.array(scene.camera.forward) > 0) == (relation == "in front of")
            else:
                assert (off[1] < 0) == (b.pixel[0] > a.pixel[0]) == (relation == "above")
    assert min(told.values()) > 20


def test_a_relation_holds_the_other_way_round() -> None:
    for scene in some_scenes():
        for a in scene.objects:
            for b in scene.objects:
                if a is not b:
                    assert relations(b, a) == [OPPOSITE[relation] for relation in relations(a, b)]


def test_captions_keep_to_the_vocabulary() -> None:
    words = {w for s in some_scenes() for c in s.captions for w in re.findall(r"[a-z]+|[;,.]", c)}
    assert words == set(VOCABULARY)
    assert len(VOCABULARY) < 100


def test_the_fourth_and_fifth_captions_tell_textures_and_sizes() -> None:
    for scene in some_scenes():
        for item in (item for item in scene.objects if item.named):
            name = f"{item.colour} {item.shape}"
            assert (f"{item.texture} {name}" in scene.captions[3]) == (item.texture != "plain")
            assert f"{item.size} {name}" in scene.captions[4]


def test_same_seed_and_index_give_the_same_bytes() -> None:
    one, two = render(5, 7), render(5, 7)
    assert one.image.tobytes() == two.image.tobytes()
    assert one.depth.tobytes() == two.depth.tobytes()
    assert one.panoptic.tobytes() == two.panoptic.tobytes()
    assert one.captions == two.captions
    assert one.objects == two.objects


def test_scenes_are_the_same_on_every_machine() -> None:
    """The digest was taken on x86-64 with AVX-512, NumPy 2.4; raise VERSION when it has to change."""
    digest = hashlib.sha256()
    for index in range(30):
        scene = render(0, index)
        for part in (scene.image, scene.depth, scene.panoptic):
            digest.update(np.ascontiguousarray(part, part.dtype.newbyteorder("<")).tobytes())
        digest.update("".join(scene.captions).encode())
    assert digest.hexdigest()[:16] == "c4729db6e5df4c54"


def test_another_seed_or_index_gives_another_scene() -> None:
    images = [render(*key).image.tobytes() for key in ((0, 1), (1, 0), (0, 2), (1, 1))]
    assert len(set(images)) == 4


def test_arrays_have_the_types_that_were_promised() -> None:
    scene = render(0, 0, size=96)
    assert (scene.image.shape, scene.image.dtype) == ((96, 96, 3), np.uint8)
    assert (scene.depth.shape, scene.depth.dtype) == ((96, 96), np.float32)
    assert (scene.panoptic.shape, scene.panoptic.dtype) == ((96, 96), np.int32)


def test_depth_map_is_the_depth_of_the_scene() -> None:
    for index in range(5):
        np.testing.assert_array_equal(depth_map(2, index), render(2, index).depth)


def test_a_larger_image_shows_the_same_scene() -> None:
    small, large = render(4, 4), render(4, 4, size=224)
    for a, b in zip(small.objects, large.objects, strict=True):
        assert (a.colour, a.shape) == (b.colour, b.shape)
        np.testing.assert_allclose(a.position, b.position)
    smooth = np.abs(np.log(large.depth[::2, ::2] / small.depth)) < 0.05
    assert smooth.mean() > 0.9
