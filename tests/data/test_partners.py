"""Partners for the shuffled floor: drawn from the whole set, and the same however images come."""

from pathlib import Path

import numpy as np

from innervision.data.loader import Batches
from innervision.data.partners import random_order
from innervision.data.sources import ImageSet
from stand_ins import to_pixels, write_noise_images


def partners_of(images: ImageSet, size: int) -> dict[str, str]:
    """The partner of each image, as batches of `size` say."""
    order = random_order(images.names)
    batches = Batches(
        images, [order[i : i + size] for i in range(0, len(order), size)], len, {"known": to_pixels}, None, True
    )
    found = {}
    for number in range(len(batches)):
        batch = batches[number]
        assert len(batch.pixels.get("known", [])) == len(batch.known) * bool(batch.names)
        found |= {batch.names[row]: batch.known[partner] for row, partner in batch.partners.items()}
    return found


def as_set(paths: list[Path]) -> ImageSet:
    return ImageSet(paths, [path.name for path in paths], [])


def test_every_image_has_another_ones_partner_and_is_one(tmp_path: Path) -> None:
    names = [path.name for path in sorted(write_noise_images(tmp_path, 11).iterdir())]
    found = partners_of(as_set([tmp_path / name for name in names]), 4)
    assert sorted(found) == sorted(found.values()) == names
    assert not any(name == partner for name, partner in found.items())


def test_partners_depend_neither_on_batches_nor_on_the_order_of_the_images(tmp_path: Path) -> None:
    paths = sorted(write_noise_images(tmp_path, 11).iterdir())
    expected = partners_of(as_set(paths), 4)
    for size in (1, 2, 3, 5, 11, 20):
        assert partners_of(as_set(paths), size) == expected
    assert partners_of(as_set(paths[::-1]), 4) == expected


def test_broken_images_are_passed_over_whatever_the_batches(tmp_path: Path) -> None:
    paths = sorted(write_noise_images(tmp_path, 11).iterdir())
    for path in (paths[2], paths[3], paths[7]):
        path.write_bytes(b"not an image")
    good = [path.name for path in paths if path.read_bytes() != b"not an image"]
    expected = partners_of(as_set([tmp_path / name for name in good]), 4)
    assert sorted(expected.values()) == good
    for size in (1, 2, 3, 11):
        assert partners_of(as_set(paths), size) == expected


def test_a_single_good_image_has_no_partner(tmp_path: Path) -> None:
    paths = sorted(write_noise_images(tmp_path, 3).iterdir())
    for path in paths[1:]:
        path.write_bytes(b"not an image")
    for size in (1, 2, 3):
        assert partners_of(as_set(paths), size) == {}


def test_in_a_set_sorted_by_class_a_partner_is_of_the_same_class_as_often_as_by_chance() -> None:
    """10 classes of 100 images: by chance 9.9% of the partners share the class; the next in the list would 99%."""
    names = [f"class{number // 100}/{number:04}.png" for number in range(1000)]
    order = random_order(names)
    classes = np.array([number // 100 for number in order])
    share = np.mean(classes == np.roll(classes, -1))
    assert abs(share - 99 / 999) < 4 * np.sqrt(0.099 * 0.901 / 1000)
