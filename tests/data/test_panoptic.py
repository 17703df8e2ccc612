"""Panoptic maps against numbers of the original's converter, and what can be wrong with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from innervision.data.panoptic import COCO_IDS, VOID, read_maps, read_panoptic
from innervision.errors import InnerVisionError
from innervision.json_files import read_json
from innervision.world.dataset import write_scenes
from innervision.world.scenes import CATEGORIES, render

CONTENT: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}],
    "categories": [{"id": 50, "name": "cup"}, {"id": 3, "name": "sky"}],
    "annotations": [
        {
            "image_id": 9,
            "file_name": "b.png",
            "segments_info": [
                {"id": 65536, "category_id": 3, "iscrowd": 0},
                {"id": 256, "category_id": 50, "iscrowd": 1},
                {"id": 0, "category_id": 50, "iscrowd": 0},
            ],
        },
        {"image_id": 7, "file_name": "a.png", "segments_info": [{"id": 256, "category_id": 50}]},
    ],
}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A root with two images; the map of b.jpg has a segment of each kind."""
    root = tmp_path / "coco"
    for folder in ("val2017", "annotations/panoptic_val2017"):
        (root / folder).mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (2, 3)).save(root / f"val2017/{name}.jpg")
    colours = [[(0, 0, 1), (0, 1, 0)], [(1, 0, 0), (0, 0, 0)], [(0, 0, 1), (255, 255, 255)]]
    Image.fromarray(np.array(colours, np.uint8)).save(root / "annotations/panoptic_val2017/b.png")
    Image.new("RGB", (2, 3), (0, 1, 0)).save(root / "annotations/panoptic_val2017/a.png")
    write(root, CONTENT)
    return root


def write(root: Path, content: object) -> Path:
    path = root / "annotations/panoptic_val2017.json"
    path.write_text(json.dumps(content))
    return path


def error(source: Path, split: str | None = None) -> str:
    with pytest.raises(InnerVisionError) as caught:
        read_panoptic(source, split)
    assert str(caught.value).count("\n") <= 1
    return str(caught.value)


def test_label_is_the_place_of_the_category_in_the_file_and_the_rest_is_void(coco: Path) -> None:
    panoptic = read_panoptic(coco)
    assert panoptic.categories == ["cup", "sky"]
    assert panoptic.images.names == ["a.jpg", "b.jpg"]
    assert panoptic.maps["b.jpg"].labels().tolist() == [[1, 0], [VOID, VOID], [1, VOID]]
    assert (panoptic.maps["a.jpg"].labels() == 0).all()


def test_root_root_with_split_and_file_give_the_same(coco: Path) -> None:
    assert read_panoptic(coco) == read_panoptic(coco, "val2017")
    assert read_panoptic(coco) == read_panoptic(coco / "annotations/panoptic_val2017.json")


def test_a_map_exchanged_for_another_of_the_same_size_makes_another_fingerprint(coco: Path) -> None:
    before = read_panoptic(coco).fingerprint()
    path = coco / "annotations/panoptic_val2017/b.png"
    right = path.read_bytes()
    path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    assert read_panoptic(coco).fingerprint() != before
    path.write_bytes(right)
    assert read_panoptic(coco).fingerprint() == before


def test_maps_equal_those_of_the_original_converter(shared: Path) -> None:
    golden = shared / "golden/metrics"
    source = golden / "pan/panoptic.json"
    expected = json.loads((golden / "pan_expected.json").read_text())
    real = read_json(shared / "coco-sample/annotations/panoptic_val2017.json")
    for categories in ({}, {"categories": real["categories"]}):  # the file lists none itself
        maps, names, _ = read_maps(source, {**read_json(source), **categories})
        assert len(names) == expected["n_categories"]
        labels = maps[1].labels()
        np.testing.assert_array_equal(labels, np.asarray(Image.open(golden / "pan/semseg_expected/a.png")))
        red, green, blue = np.asarray(Image.open(golden / "pan/panoptic/a.png")).astype(int).transpose(2, 0, 1)
        for segment, label in expected["value_by_segment_id"].items():
            assert set(labels[red + 256 * green + 256**2 * blue == int(segment)]) <= {label}
    assert names == expected["names"]
    assert {str(number): label for label, number in enumerate(COCO_IDS)} == expected["id_map"]


def test_real_annotations_cover_the_areas_that_they_state(shared: Path) -> None:
    sample = shared / "coco-sample"
    panoptic = read_panoptic(sample, "val2017")
    content = read_json(sample / "annotations/panoptic_val2017.json")
    assert len(panoptic.images) == len(content["images"]) == 2
    order = [category["id"] for category in content["categories"]]
    for image in content["images"]:
        labels = panoptic.maps[image["file_name"]].labels()
        assert labels.shape == (image["height"], image["width"])
        areas = dict.fromkeys(range(133), 0)
        for annotation in content["annotations"]:
            for segment in annotation["segments_info"] if annotation["image_id"] == image["id"] else []:
                areas[order.index(segment["category_id"])] += segment["area"]
        assert {label: int((labels == label).sum()) for label in areas} == areas


def test_scenes_are_read_as_they_are(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", train=1, val=3, size=64, progress=False)
    panoptic = read_panoptic(tmp_path / "scenes", "val2017")
    assert panoptic.categories == [category["name"] for category in CATEGORIES]
    assert len(panoptic.images) == 3
    for name, found in panoptic.maps.items():
        scene = render(0, int(Path(name).stem), 64)
        known = {segment.id: segment.category_id - 1 for segment in scene.segments}  # ids count from 1 there
        np.testing.assert_array_equal(found.labels(), np.vectorize(known.get)(scene.panoptic))


def test_image_without_annotation_or_map_is_missing(coco: Path) -> None:
    (coco / "annotations/panoptic_val2017/a.png").unlink()
    write(coco, {**CONTENT, "images": [*CONTENT["images"], {"id": 11, "file_name": "c.jpg"}]})
    Image.new("RGB", (2, 3)).save(coco / "val2017/c.jpg")
    panoptic = read_panoptic(coco)
    assert panoptic.images.names == ["b.jpg"]
    assert [name for name, _ in panoptic.images.missing] == ["a.jpg", "c.jpg"]


def test_several_splits_need_a_name(coco: Path) -> None:
    write(coco, CONTENT).with_name("panoptic_train2017.json").write_text("{}")
    assert "several panoptic files" in error(coco)
    assert read_panoptic(coco, "val2017").images.names == ["a.jpg", "b.jpg"]
    assert "panoptic_test2017.json does not exist" in error(coco, "test2017")


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "x/../../a.png"])
def test_map_outside_of_its_folder_is_refused(coco: Path, name: str) -> None:
    Image.new("RGB", (2, 3)).save(coco / "annotations/a.png")
    annotations = [{"image_id": 7, "file_name": name, "segments_info": []}]
    assert "outside of its folder" in error(write(coco, {**CONTENT, "annotations": annotations}))


def test_a_map_may_be_a_link_as_the_hubs_cache_makes_them(coco: Path, tmp_path: Path) -> None:
    path = coco / "annotations/panoptic_val2017/a.png"
    path.rename(tmp_path / "blob")
    path.symlink_to(tmp_path / "blob")
    assert (read_panoptic(coco).maps["a.jpg"].labels() == 0).all()


def change_entry(coco: Path, **changes: Any) -> None:
    """Change the annotation of a.jpg."""
    entry = {**CONTENT["annotations"][1], **changes}
    write(coco, {**CONTENT, "annotations": [CONTENT["annotations"][0], entry]})


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        ([], "no segments"),
        ([{"id": 256, "category_id": 99}], "its segment 256 is of the category 99"),
        ([{"id": 256, "category_id": 50}, {"id": 256, "category_id": 3}], "the segment 256 twice"),
    ],
)
def test_an_image_whose_segments_make_no_sense_is_left_out_by_name(
    coco: Path, segments: list[Any], reason: str
) -> None:
    change_entry(coco, segments_info=segments)
    images = read_panoptic(coco).images
    assert images.names == ["b.jpg"]
    [(name, why)] = images.missing
    assert name == "a.jpg"
    assert reason in why


def test_an_image_with_two_annotations_or_the_id_of_another_is_left_out(coco: Path) -> None:
    write(coco, {**CONTENT, "annotations": [*CONTENT["annotations"], CONTENT["annotations"][1]]})
    assert read_panoptic(coco).images.missing == [("a.jpg", "it has several annotations")]
    Image.new("RGB", (2, 3)).save(coco / "val2017/c.jpg")
    write(coco, {**CONTENT, "images": [*CONTENT["images"], {"id": 7, "file_name": "c.jpg"}]})
    assert [name for name, _ in read_panoptic(coco).images.missing] == ["a.jpg", "c.jpg"]


def test_annotations_of_images_that_are_not_listed_are_noted(coco: Path) -> None:
    write(coco, {**CONTENT, "images": CONTENT["images"][:1]})
    [note] = read_panoptic(coco).images.notes
    assert "1 annotations" in note
    assert note.endswith("by id: 9")


def test_a_map_without_the_segments_of_its_annotation_is_refused(coco: Path) -> None:
    change_entry(coco, segments_info=[{"id": 5, "category_id": 50}])
    with pytest.raises(InnerVisionError, match="none of the segments"):
        read_panoptic(coco).maps["a.jpg"].labels()


@pytest.mark.parametrize(
    ("stored", "orientation", "of_map", "fits"),
    [
        ((2, 3), 1, (2, 3), True),
        ((2, 3), 1, (3, 2), False),  # turned map
        ((2, 3), 1, (4, 6), False),  # the photograph before it was made smaller
        ((2, 4), 1, (2, 3), False),  # before it was cropped
        ((3, 2), 6, (2, 3), True),
        ((3, 2), 8, (2, 3), True),
        ((2, 3), 6, (2, 3), False),  # the map of what is stored
        ((2, 3), 8, (2, 3), False),
        ((2, 3), 3, (2, 3), False),  # upside down: either
        ((3, 3), 6, (3, 3), False),
    ],
)
def test_a_map_that_does_not_fit_its_image_is_refused(
    coco: Path, stored: tuple[int, int], orientation: int, of_map: tuple[int, int], fits: bool
) -> None:
    """Sizes are width and height."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", stored).save(coco / "val2017/a.jpg", exif=exif)
    Image.new("RGB", of_map, (0, 1, 0)).save(coco / "annotations/panoptic_val2017/a.png")
    found = read_panoptic(coco).maps["a.jpg"]
    if fits:
        assert found.labels_of(coco / "val2017/a.jpg").shape == of_map[::-1]
    else:
        with pytest.raises(InnerVisionError, match=r"its map has|may or may not hold for its map"):
            found.labels_of(coco / "val2017/a.jpg")


@pytest.mark.parametrize(
    "change",
    [
        {"annotations": None},
        {"annotations": [{"image_id": 7}]},
        {"annotations": [{"image_id": 7, "file_name": 3, "segments_info": []}]},
        {"annotations": [{"image_id": 7, "file_name": "a.png", "segments_info": [{"id": 1, "category_id": 99}]}]},
        {"annotations": [{"image_id": 7, "file_name": "a.png", "segments_info": [{"id": "1", "category_id": 3}]}]},
        {"categories": [{"id": 1}]},
        {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]},
        {"categories": [{"id": number, "name": "x"} for number in range(256)]},
    ],
)
def test_what_is_not_in_the_format_is_named(coco: Path, change: dict[str, Any]) -> None:
    message = error(write(coco, {**CONTENT, **change}))
    assert "panoptic_val2017.json" in message


@pytest.mark.parametrize("content", ["", "[]", "3", "{"])
def test_file_that_is_no_annotation_file(coco: Path, content: str) -> None:
    (coco / "annotations/panoptic_val2017.json").write_text(content)
    assert "panoptic_val2017.json is not" in error(coco)


@pytest.mark.parametrize("what", ["grey", "half", "gone"])
def test_map_that_cannot_be_read(coco: Path, what: str) -> None:
    found = read_panoptic(coco).maps["b.jpg"]
    if what == "grey":
        Image.new("L", (2, 3)).save(found.path)
    elif what == "half":
        found.path.write_bytes(found.path.read_bytes()[:50])
    else:
        found.path.unlink()
    with pytest.raises(InnerVisionError, match=r"cannot read the panoptic map .*b\.png"):
        found.labels()
