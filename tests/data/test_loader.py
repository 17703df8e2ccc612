"""Broken images are counted, and too many of them are noticed before the work starts."""

from pathlib import Path

import pytest

from innervision.data.loader import BadImages
from innervision.data.sources import ImageSet
from innervision.errors import InnerVisionError
from stand_ins import write_noise_images


def images_with(folder: Path, total: int, broken: int) -> ImageSet:
    """`total` images of which every first of total/broken is no image."""
    write_noise_images(folder, total)
    paths = sorted(folder.iterdir())
    for path in paths[:: total // broken] if broken else []:
        path.write_bytes(b"not an image")
    return ImageSet(paths, [path.name for path in paths], [])


def test_a_small_set_is_read_as_a_whole(tmp_path: Path) -> None:
    images = images_with(tmp_path, 20, 2)
    bad = BadImages(images, limit=0.1)
    assert bad.look_ahead(images) == ["0000.png", "0010.png"]
    with pytest.raises(InnerVisionError, match=r"2 of 20 images are missing or broken, more than max_bad=0\.09"):
        BadImages(images, limit=0.09).look_ahead(images)


def test_a_sample_that_is_far_worse_than_allowed_stops_the_run(tmp_path: Path) -> None:
    """A tenth of 2000 is broken: a sample of 100 shows about 10, where 1% would show 1; all may have 20."""
    images = images_with(tmp_path, 2000, 200)
    with pytest.raises(InnerVisionError, match=r"of 100 images drawn at random are missing or broken.*max_bad=0\.01"):
        BadImages(images, limit=0.01).look_ahead(images, sample=100)


def test_a_sample_that_could_be_chance_does_not(tmp_path: Path) -> None:
    """A tenth is broken and 9% are allowed: a sample cannot tell, the count of all will."""
    images = images_with(tmp_path, 200, 20)
    bad = BadImages(images, limit=0.09)
    found = bad.look_ahead(images, sample=100)
    assert 0 < len(found) <= 18
    assert set(found) == set(bad.reasons)


def test_missing_images_do_not_count_twice(tmp_path: Path) -> None:
    images = images_with(tmp_path, 4, 1)
    listed = ImageSet(images.paths, images.names, [("gone.png", "no such file")])
    bad = BadImages(listed, limit=0.4)
    assert bad.look_ahead(listed) == ["0000.png"]
    assert bad.look_ahead(listed) == []
    assert list(bad.reasons) == ["gone.png", "0000.png"]
