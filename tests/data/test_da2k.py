"""DA-2K's annotations, and what can be wrong with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from innervision.data.da2k import read_da2k
from innervision.errors import InnerVisionError
from innervision.world.dataset import write_scenes

PAIR: dict[str, Any] = {"point1": [1, 2], "point2": [0, 3], "closer_point": "point1"}
NAME = "images/indoor/a.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one image of 2 rows and 4 columns."""
    path = tmp_path / "da2k" / NAME
    path.parent.mkdir(parents=True)
    Image.new("RGB", (4, 2)).save(path)
    return tmp_path / "da2k"


def write(folder: Path, content: object) -> Path:
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def error(folder: Path) -> str:
    with pytest.raises(InnerVisionError) as caught:
        read_da2k(folder)
    assert str(caught.value).count("\n") <= 1
    return str(caught.value)


def test_points_are_rows_and_columns_and_the_closer_one_is_numbered(folder: Path) -> None:
    write(folder, {NAME: [PAIR, {**PAIR, "closer_point": "point2"}]})
    da2k = read_da2k(folder)
    assert da2k.images.names == [NAME]
    assert da2k.images.paths == [folder / NAME]
    pairs = da2k.pairs[NAME]
    assert pairs.points.tolist() == [[[1, 2], [0, 3]], [[1, 2], [0, 3]]]
    assert pairs.closer.tolist() == [1, 2]
    assert pairs.scene_type == "indoor"


def test_folder_its_parent_and_its_annotations_give_the_same(folder: Path) -> None:
    write(folder, {f"./{NAME}": [PAIR]})
    folder = folder.rename(folder.parent / "DA-2K")
    for source in (folder, folder.parent, folder / "annotations.json"):
        assert read_da2k(source).images.paths == [folder / NAME]


@pytest.mark.parametrize(
    ("name", "scene_type"),
    [
        ("images/outdoor/b/c.png", "outdoor"),
        ("DA-2K/images/indoor/a.png", "indoor"),
        ("images/a.png", ""),
        ("a.png", ""),
    ],
)
def test_scene_type_is_the_folder_below_images(folder: Path, name: str, scene_type: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 2)).save(folder / name)
    assert read_da2k(write(folder, {name: [PAIR]})).pairs[name].scene_type == scene_type


def test_sample(shared: Path) -> None:
    da2k = read_da2k(shared / "da2k-sample")
    assert da2k.images.missing == []
    assert da2k.images.names == ["images/outdoor/000000142238.jpg", "images/outdoor/000000439180.jpg"]
    assert {pairs.scene_type for pairs in da2k.pairs.values()} == {"outdoor"}
    points = da2k.pairs["images/outdoor/000000439180.jpg"].points
    np.testing.assert_array_equal(points[1], [[250, 300], [60, 100]])


def test_scenes_are_read_as_they_are(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", train=0, val=12, size=64, progress=False)
    da2k = read_da2k(tmp_path / "scenes/da2k")
    assert len(da2k.images) > 5
    for name, pairs in da2k.pairs.items():
        depth = np.asarray(Image.open(tmp_path / f"scenes/depth/val2017/{Path(name).stem}.png"))
        near, far = depth[tuple(pairs.points[:, 0].T)], depth[tuple(pairs.points[:, 1].T)]
        assert (near < far).all()
        assert (pairs.closer == 1).all()
        assert pairs.scene_type in ("indoor", "outdoor")


@pytest.mark.parametrize("point", [[2, 0], [0, 4], [3, 1]])
def test_point_outside_of_the_image_is_refused(folder: Path, point: list[int]) -> None:
    message = error(write(folder, {NAME: [{**PAIR, "point2": point}]}))
    assert f"{NAME} (the point {point} (row, column) lies outside of it, which has 2 rows and 4 columns)" in message


def test_an_image_with_a_point_outside_is_left_out_and_the_others_stay(folder: Path) -> None:
    Image.new("RGB", (4, 2)).save(folder / "images/indoor/b.png")
    images = read_da2k(write(folder, {NAME: [PAIR], "images/indoor/b.png": [{**PAIR, "point1": [5, 5]}]})).images
    assert images.names == [NAME]
    assert [name for name, _ in images.missing] == ["images/indoor/b.png"]


def test_points_of_a_photograph_before_it_is_turned_are_said_to_be_so(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (4, 2)).save(folder / NAME, exif=exif)
    assert "as it is stored, before its EXIF orientation turns it" in error(write(folder, {NAME: [PAIR]}))


def test_images_without_pairs_are_noted(folder: Path) -> None:
    Image.new("RGB", (4, 2)).save(folder / "images/indoor/b.png")
    [note] = read_da2k(write(folder, {NAME: [PAIR]})).images.notes
    assert note.startswith("1 images")
    assert note.endswith("images/indoor/b.png")


def test_an_image_named_twice_is_refused(folder: Path) -> None:
    (folder / "annotations.json").write_text(f'{{"{NAME}": [], "{NAME}": {json.dumps([PAIR])}}}')
    assert "twice" in error(folder)
    assert "in two ways" in error(write(folder, {NAME: [PAIR], f"./{NAME}": [PAIR]}))


def test_image_is_measured_upright(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: 4 rows and 2 columns
    Image.new("RGB", (4, 2)).save(folder / NAME, exif=exif)
    write(folder, {NAME: [{**PAIR, "point1": [3, 1], "point2": [0, 0]}]})
    assert len(read_da2k(folder).images) == 1
    assert "has 4 rows and 2 columns" in error(write(folder, {NAME: [{**PAIR, "point1": [1, 3]}]}))


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "images/../../a.png", "C:\\a.png"])
def test_image_outside_of_the_folder_is_refused(folder: Path, name: str) -> None:
    assert "outside of its folder" in error(write(folder, {name: [PAIR]}))


def test_an_image_may_be_a_link_as_the_hubs_cache_makes_them(folder: Path, tmp_path: Path) -> None:
    (folder / NAME).rename(tmp_path / "blob")
    (folder / NAME).symlink_to(tmp_path / "blob")
    assert read_da2k(write(folder, {NAME: [PAIR]})).images.names == [NAME]


def test_image_that_is_not_there_is_missing_and_a_broken_one_is_left_to_the_reader(folder: Path) -> None:
    (folder / "images/indoor/b.png").write_bytes(b"no image")
    da2k = read_da2k(write(folder, {name: [PAIR] for name in (NAME, "images/indoor/b.png", "images/indoor/c.png")}))
    assert da2k.images.names == [NAME, "images/indoor/b.png"]
    assert [name for name, _ in da2k.images.missing] == ["images/indoor/c.png"]


def test_no_image_at_all(folder: Path) -> None:
    (folder / NAME).unlink()
    assert "none of the 1 images" in error(write(folder, {NAME: [PAIR]}))


@pytest.mark.parametrize(
    "entry",
    [
        None,
        "point1",
        {"point1": [1, 2], "point2": [0, 3]},
        {**PAIR, "closer_point": "point3"},
        {**PAIR, "point1": [1]},
        {**PAIR, "point1": [1, 2, 3]},
        {**PAIR, "point2": [-1, 0]},
        {**PAIR, "point2": [0.5, 0]},
        {**PAIR, "point2": [True, 0]},
    ],
)
def test_pair_that_makes_no_sense_is_named(folder: Path, entry: object) -> None:
    message = error(write(folder, {NAME: [PAIR, entry]}))
    assert f"a pair for {NAME}" in message


@pytest.mark.parametrize("content", [{}, [], 3, {NAME: []}, {NAME: PAIR}])
def test_file_in_another_format(folder: Path, content: object) -> None:
    assert "annotations.json" in error(write(folder, content))


def test_folder_without_annotations(folder: Path) -> None:
    assert str(folder / "annotations.json") in error(folder)
