"""Scenes on disk, read back with nothing but json, Pillow and NumPy, as the benchmarks' own loaders do."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from innervision.cli import main
from innervision.errors import InnerVisionError
from innervision.world import dataset
from innervision.world.dataset import FIRST_INDEX, choose_pairs, mean_depth, write_scenes
from innervision.world.scenes import CATEGORIES, Dice, Scene, depth_map, render

SIZE = 64


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "world"
    write_scenes(out, train=7, val=12, seed=1, size=SIZE, progress=False)
    return out


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def order_right(pairs: list[tuple[Scene, dict]], place: NDArray[np.float64]) -> float:
    """The share of pairs in which a map of depths, the same for all images, has point 1 closer."""
    return float(np.mean([place[tuple(p["point1"])] < place[tuple(p["point2"])] for _, p in pairs]))


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Scene, dict]]:
    """What val scenes ask, at the full size."""
    prior = mean_depth(0)
    found = []
    for index in range(FIRST_INDEX["val"], FIRST_INDEX["val"] + 300):
        scene = render(0, index)
        found += [(scene, pair) for pair in choose_pairs(scene, prior, Dice(0, index, 1))]
    return found


@pytest.mark.parametrize(("split", "count"), [("train", 7), ("val", 12)])
def test_captions_are_in_the_layout_of_coco(out: Path, split: str, count: int) -> None:
    captions = read(out / f"annotations/captions_{split}2017.json")
    assert captions.keys() == {"info", "licenses", "images", "annotations"}
    assert len({image["id"] for image in captions["images"]}) == count
    for image in captions["images"]:
        assert image["file_name"] == f"{image['id']:012d}.jpg"
        assert Image.open(out / f"{split}2017" / image["file_name"]).size == (image["width"], image["height"])
        texts = [a["caption"] for a in captions["annotations"] if a["image_id"] == image["id"]]
        assert texts == render(1, image["id"], SIZE).captions
    identities = [annotation["id"] for annotation in captions["annotations"]]
    assert len(set(identities)) == 5 * count


@pytest.mark.parametrize(("split", "count"), [("train", 7), ("val", 12)])
def test_panoptic_maps_are_in_the_layout_of_coco(out: Path, split: str, count: int) -> None:
    panoptic = read(out / f"annotations/panoptic_{split}2017.json")
    assert panoptic["categories"] == CATEGORIES
    assert {image["id"] for image in panoptic["images"]} == {a["image_id"] for a in panoptic["annotations"]}
    assert len(panoptic["annotations"]) == count
    for annotation in panoptic["annotations"]:
        path = out / f"annotations/panoptic_{split}2017" / annotation["file_name"]
        colours = np.asarray(Image.open(path)).astype(int)
        ids = colours[..., 0] + 256 * colours[..., 1] + 256**2 * colours[..., 2]
        scene = render(1, annotation["image_id"], SIZE)
        assert {segment["id"] for segment in annotation["segments_info"]} == set(np.unique(ids))
        assert len(annotation["segments_info"]) == len(scene.segments)
        for segment, known in zip(annotation["segments_info"], scene.segments, strict=True):
            here = ids == segment["id"]
            np.testing.assert_array_equal(here, scene.panoptic == known.id)
            assert segment["category_id"] == known.category_id
            assert segment["area"] == here.sum()
            assert segment["iscrowd"] == 0
            left, top, width, height = segment["bbox"]
            assert here[top : top + height, left : left + width].sum() == here.sum()


def test_images_are_the_scenes(out: Path) -> None:
    for path in sorted((out / "train2017").iterdir()):
        image = np.asarray(Image.open(path)).astype(int)
        assert np.abs(image - render(1, int(path.stem), SIZE).image).mean() < 3


def test_depth_is_kept_in_millimetres(out: Path) -> None:
    for path in sorted((out / "depth/val2017").iterdir()):
        depth = np.asarray(Image.open(path)) / 1000
        np.testing.assert_allclose(depth, render(1, int(path.stem), SIZE).depth, atol=6e-4)


def test_train_and_val_share_no_scene(out: Path) -> None:
    ids = [
        {image["id"] for image in read(out / f"annotations/captions_{split}2017.json")["images"]}
        for split in ("train", "val")
    ]
    assert not ids[0] & ids[1]


def test_pairs_are_in_the_layout_of_da2k(out: Path) -> None:
    asked = read(out / "da2k/annotations.json")
    assert len(asked) > 5
    for path, found in asked.items():
        folder, place, name = path.split("/")
        assert folder == "images"
        assert place in ("indoor", "outdoor")
        image = Image.open(out / "da2k" / path)
        assert image.size == (SIZE, SIZE)
        assert (out / "da2k" / path).read_bytes() == (out / "val2017" / name).read_bytes()
        depth = np.asarray(Image.open(out / "depth/val2017" / name.replace(".jpg", ".png"))).astype(float)
        beside = out / "da2k/depth" / place / name.replace(".jpg", ".png")
        assert beside.read_bytes() == (out / "depth/val2017" / beside.name).read_bytes()
        for pair in found:
            assert pair["closer_point"] == "point1"
            assert depth[tuple(pair["point2"])] > 1.49 * depth[tuple(pair["point1"])]


def test_pairs_are_clear(pairs: list[tuple[Scene, dict]]) -> None:
    for scene, pair in pairs:
        a, b = pair["point1"], pair["point2"]
        assert scene.depth[tuple(b)] > 1.499 * scene.depth[tuple(a)]
        for row, column in (a, b):
            around = np.s_[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
            assert len(np.unique(scene.panoptic[around])) == 1
            assert np.ptp(scene.depth[around]) < 0.15 * scene.depth[around].min()


def test_place_in_the_image_tells_little_about_pairs(pairs: list[tuple[Scene, dict]]) -> None:
    assert len(pairs) > 250
    others = [depth_map(0, index) for index in range(1000, 1400)]  # training scenes the choice has not seen
    assert 0.4 < order_right(pairs, np.mean(others, axis=0)) <= 0.6
    assert 0.4 < order_right(pairs, -np.mean([1 / depth for depth in others], axis=0)) <= 0.6
    rows = np.repeat(-np.arange(112.0)[:, None], 112, axis=1)
    assert 0.4 < order_right(pairs, rows) <= 0.6


def test_place_in_the_image_tells_much_about_points_taken_blindly() -> None:
    """The bound above is the choice's doing: without it, place alone is right nine times in ten."""
    prior, dice, right = mean_depth(0), Dice(0), []
    for index in range(FIRST_INDEX["val"], FIRST_INDEX["val"] + 60):
        depth = depth_map(0, index)
        for _ in range(20):
            a, b = ((int(dice.between(0, 112)), int(dice.between(0, 112))) for _ in range(2))
            if depth[a] * 1.15 < depth[b]:
                right.append(prior[a] < prior[b])
    assert np.mean(right) > 0.8


def test_being_an_object_tells_little_about_pairs(pairs: list[tuple[Scene, dict]]) -> None:
    closer = []
    for scene, pair in pairs:
        things = [scene.segments[scene.panoptic[tuple(pair[name])] - 1].isthing for name in ("point1", "point2")]
        assert any(things)
        if not all(things):
            closer.append(things[0])
    assert np.mean(closer) == 0.5


def test_a_second_call_leaves_a_finished_folder_alone(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "render", None)
    before = contents(out)
    write_scenes(out, train=7, val=12, seed=1, size=SIZE, progress=False)
    assert contents(out) == before


def test_an_interrupted_call_is_taken_up_again(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def until(stop: int) -> None:
        def draw(seed: int, index: int, size: int) -> Scene:
            if len(drawn) == stop:
                raise KeyboardInterrupt
            drawn.append(index)
            return render(seed, index, size)

        monkeypatch.setattr(dataset, "render", draw)

    monkeypatch.setattr(dataset, "_CHUNK", 5)
    until(9)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "again", train=7, val=12, seed=1, size=SIZE, progress=False)
    assert not list((tmp_path / "again/annotations").glob("*.json"))
    (tmp_path / "again/train2017/.000000000006-killed.jpg").write_bytes(b"half an im")
    until(100)
    write_scenes(tmp_path / "again", train=7, val=12, seed=1, size=SIZE, progress=False)
    assert sorted(set(drawn[:9]) & set(drawn[9:])) == [FIRST_INDEX["val"], FIRST_INDEX["val"] + 1]
    assert contents(tmp_path / "again") == contents(out)


def test_two_workers_write_the_same_files(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path / "two", train=7, val=12, seed=1, size=SIZE, workers=2, progress=False)
    assert contents(tmp_path / "two") == contents(out)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not lose me")
    with pytest.raises(InnerVisionError, match="empty folder"):
        write_scenes(tmp_path, train=1, val=0, size=SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("change", [{"seed": 2}, {"train": 8}, {"size": 80}])
def test_a_folder_of_other_scenes_is_refused(out: Path, change: dict[str, int]) -> None:
    with pytest.raises(InnerVisionError, match="other settings"):
        write_scenes(out, **{"train": 7, "val": 12, "seed": 1, "size": SIZE, **change})


@pytest.mark.parametrize("wrong", [{"train": -1}, {"train": 0, "val": 0}, {"size": 10}, {"workers": 0}])
def test_numbers_that_make_no_sense_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(InnerVisionError):
        write_scenes(tmp_path / "x", **{"train": 1, "val": 1, **wrong})
    assert not (tmp_path / "x").exists()


def test_a_split_without_scenes_is_left_out(tmp_path: Path) -> None:
    write_scenes(tmp_path / "t", train=1, val=0, size=SIZE, progress=False)
    names = {path.name for path in (tmp_path / "t/annotations").glob("*.json")}
    assert names == {"captions_train2017.json", "panoptic_train2017.json"}
    assert not (tmp_path / "t/da2k").exists()


def test_a_command_writes_them(out: Path, tmp_path: Path) -> None:
    words = ["--train", "7", "--val", "12", "--seed", "1", "--size", str(SIZE)]
    assert main(["data", "scenes", str(tmp_path / "again"), *words]) == 0
    assert contents(tmp_path / "again") == contents(out)
