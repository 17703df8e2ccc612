"""Features of real images on disk: whose they are, in which order, and what a broken file does (nothing)."""

from pathlib import Path

import numpy as np
import pytest

from innervision.data import find_images
from innervision.tasks.known_features import KnownFeatures
from stand_ins import write_noise_images

MODEL = ["pooled", "dino", "sha256:0"]
FEATURES = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/innervision/features"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_noise_images(tmp_path / "images", 4)


def keep(folder: Path, model: list[str] = MODEL) -> KnownFeatures:
    images = find_images(folder)
    KnownFeatures(images, model).keep(images.names, {"standard": FEATURES, "paper": -FEATURES})
    return KnownFeatures(images, model)


def test_nothing_is_known_at_first(folder: Path) -> None:
    assert not KnownFeatures(find_images(folder), MODEL)


def test_features_come_back_by_image_whatever_the_order(folder: Path) -> None:
    images = find_images(folder)
    shuffled = [2, 0, 3, 1]
    KnownFeatures(images, MODEL).keep([images.names[i] for i in shuffled], {"standard": FEATURES[shuffled]})
    known = KnownFeatures(images, MODEL)
    assert known
    np.testing.assert_array_equal(known.of([images.names[3], images.names[1]])["standard"], FEATURES[[3, 1]])


def test_every_view_has_its_own(folder: Path) -> None:
    found = keep(folder).of(["0002.png"])
    np.testing.assert_array_equal(found["standard"], FEATURES[[2]])
    np.testing.assert_array_equal(found["paper"], -FEATURES[[2]])


def test_another_model_or_another_image_of_the_same_name_is_not_known(folder: Path) -> None:
    keep(folder)
    assert not KnownFeatures(find_images(folder), ["backbone", *MODEL[1:]])
    write_noise_images(folder, 1, seed=9, size=(9, 9))
    assert not KnownFeatures(find_images(folder), MODEL)


def test_the_same_images_in_another_folder_are_known(folder: Path, tmp_path: Path) -> None:
    keep(folder)
    assert KnownFeatures(find_images(folder.rename(tmp_path / "moved")), MODEL)


def test_only_a_whole_set_is_kept_and_what_is_known_stays(folder: Path, cache: Path) -> None:
    images = find_images(folder)
    KnownFeatures(images, MODEL).keep(images.names[:3], {"standard": FEATURES[:3]})
    assert not cache.exists()
    keep(folder).keep(images.names, {"standard": FEATURES + 1})
    np.testing.assert_array_equal(KnownFeatures(images, MODEL).of(images.names)["standard"], FEATURES)


def test_a_broken_file_is_as_none(folder: Path, cache: Path) -> None:
    keep(folder)
    [file] = cache.iterdir()
    file.write_bytes(b"broken")
    assert not KnownFeatures(find_images(folder), MODEL)
    assert keep(folder)


def test_a_folder_that_cannot_be_written_costs_time_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not keep(folder)
