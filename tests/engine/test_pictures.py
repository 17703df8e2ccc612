"""The pictures that a run keeps, against what the experts' heads make of its predictions."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import gen_runs
import task_runs
from innervision.config import DrawSettings, TaskSettings
from innervision.data import read_image
from innervision.engine.decode import Decoded, decode_layers
from innervision.engine.pictures import Wanted, columns, keep_pictures
from innervision.engine.session import Session
from innervision.errors import InnerVisionError
from innervision.report.files import read_facts
from innervision.report.page.pictures import make_pictures, parse_data
from innervision.tasks.depth import Depth
from innervision.tasks.seg import Seg


class World:
    """A run scored by depth and seg, its models, and the images of its benchmarks."""

    def __init__(self, root: Path) -> None:
        task_runs.prepare(root)
        self.root, self.run = root, root / "run"
        self.models: dict[str, Any] = {"mllm": task_runs.load_mllm(root), "targets": task_runs.load_targets(root)}
        for task in ("depth", "seg"):
            task_runs.evaluate(root, self.run, task, tuple(self.models.values()))

    def wanted(self, run: Path) -> dict[str, Wanted]:
        tasks = {
            "depth": Depth(TaskSettings(data=str(self.root / "DA-2K"))),
            "seg": Seg(TaskSettings(data=str(self.root / "coco"))),
        }
        hashes = {name: read_facts(run, name).images for name in tasks}
        return {
            name: Wanted(task, {image: hashes[name][image] for image in task.images.names[:2]})
            for name, task in tasks.items()
        }

    def decoded(self, run: Path, target: str, image: Path) -> Decoded:
        return decode_layers(run, read_image(image), only=[target], **self.models)[target]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def run(world: World, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.run, tmp_path / "run"))


def cells(run: Path, target: str, entry: Mapping[str, Any]) -> dict[str, np.ndarray]:
    sheet = np.asarray(Image.open(run / f"pictures/{target}/{entry['hash']}.png"))
    across = columns(len(entry["cells"]))
    width = sheet.shape[1] // across
    grid = {name: divmod(number, across) for number, name in enumerate(entry["cells"])}
    return {
        name: sheet[row * width : (row + 1) * width, column * width : (column + 1) * width]
        for name, (row, column) in grid.items()
    }


def test_depth_is_drawn_on_the_experts_scale_for_the_image_and_pairs_are_kept(world: World, run: Path) -> None:
    wanted = world.wanted(run)
    keep_pictures(run, wanted, **world.models)
    album = json.loads((run / "pictures/depth.json").read_text())
    name, hash = next(iter(wanted["depth"].hashes.items()))
    entry = album["images"][name]
    assert entry["hash"] == hash
    decoded = world.decoded(run, "depth", world.root / "DA-2K" / name)
    shown = cells(run, "depth", entry)
    assert [*shown] == ["expert", "mean", *map(str, decoded.layers)]
    low, high = float(decoded.expert.min()), float(decoded.expert.max())
    for title, output in {"expert": decoded.expert, "mean": decoded.mean, **decoded.layers}.items():
        assert output is not None
        expected = ((output - low) / (high - low)).clamp(0, 1) * 254
        np.testing.assert_allclose(shown[str(title)], expected.numpy(), atol=0.6)  # of 56 pixels, as decoded
    truth = json.loads((world.root / "DA-2K/annotations.json").read_text())[name]
    height, width = read_image(world.root / "DA-2K" / name).size[::-1]
    for pair, (closer, other) in zip(truth, entry["pairs"], strict=True):
        for (row, column), (y, x) in ((pair["point1"], closer), (pair["point2"], other)):
            assert (y * height - 0.5, x * width - 0.5) == pytest.approx((row, column), abs=0.01)


def test_a_known_depth_is_drawn_with_the_experts_tones_in_its_own_order_and_grey_where_it_is_not_known(
    world: World, run: Path, tmp_path: Path
) -> None:
    wanted = world.wanted(run)["depth"]
    keep_pictures(run, {"depth": wanted}, **world.models)
    data = Path(shutil.copytree(world.root / "DA-2K", tmp_path / "DA-2K"))
    names = [*wanted.hashes]
    width, height = read_image(data / names[0]).size
    columns_, rows = np.meshgrid(np.arange(width), np.arange(height))
    depth = 1000 + 50 * columns_ + rows  # the left is close
    depth[:, width // 2 : width // 2 + width // 10] = 0
    path = (data / "depth" / Path(names[0]).relative_to("images")).with_suffix(".png")
    path.parent.mkdir(parents=True)
    Image.fromarray(depth.astype(np.uint16)).save(path)
    beside = Wanted(Depth(TaskSettings(data=str(data))), wanted.hashes)
    keep_pictures(run, {"depth": beside}, **world.models)  # what was kept had no truth
    album = json.loads((run / "pictures/depth.json").read_text())["images"]
    assert [album[name]["cells"][0] for name in names] == ["truth", "expert"]
    shown = cells(run, "depth", album[names[0]])
    truth, expert = shown["truth"], shown["expert"]
    side = truth.shape[1]
    assert (truth[:, round(0.52 * side) : round(0.58 * side)] == 255).all()
    left, right = truth[:, : round(0.45 * side)], truth[:, round(0.65 * side) :]
    assert left.min() > right.max() > 0
    assert (np.diff(left.mean(axis=0)) <= 0).all()
    assert np.median(truth[truth < 255]) == pytest.approx(np.median(expert), abs=30)
    palette = np.array(Image.open(run / f"pictures/depth/{album[names[0]]['hash']}.png").getpalette()).reshape(-1, 3)
    assert palette[255].tolist() == [128, 128, 128]


def test_classes_are_kept_by_their_numbers_beside_the_truth(world: World, run: Path) -> None:
    wanted = world.wanted(run)
    keep_pictures(run, wanted, **world.models)
    album = json.loads((run / "pictures/seg.json").read_text())
    assert album["classes"] == task_runs.NAMES
    name = next(iter(wanted["seg"].hashes))
    shown = cells(run, "seg", album["images"][name])
    decoded = world.decoded(run, "seg", world.root / "coco/val2017" / name)
    for layer, scores in decoded.layers.items():
        whole = torch.nn.functional.interpolate(scores[None], shown["truth"].shape, mode="bilinear")[0]
        np.testing.assert_array_equal(shown[str(layer)], whole.argmax(0))
    # the annotation's categories are in another order than the expert's classes; 0 in its PNGs is void
    segments = np.asarray(Image.open(world.root / f"coco/annotations/panoptic_val2017/{Path(name).stem}.png"))[..., 0]
    rows, places = (np.arange(64) * size // 64 for size in segments.shape)
    sampled = segments[rows][:, places].astype(int)
    np.testing.assert_array_equal(shown["truth"], np.where(sampled == 0, 255, len(task_runs.NAMES) - sampled))


def test_what_is_kept_is_not_made_again_unless_the_probes_have_changed(
    world: World, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = world.wanted(run)
    keep_pictures(run, wanted, **world.models)
    sheet = run / f"pictures/depth/{next(iter(wanted['depth'].hashes.values()))}.png"
    with monkeypatch.context() as patch:
        patch.setattr(Session, "load", None)  # no model is needed
        keep_pictures(run, wanted)
    before = sheet.read_bytes()
    sheet.write_bytes(b"")
    bank = bytearray((run / "probes/depth.safetensors").read_bytes())
    bank[-4] ^= 1  # the lowest bit of one weight
    (run / "probes/depth.safetensors").write_bytes(bank)
    keep_pictures(run, wanted, **world.models)
    assert len(sheet.read_bytes()) == pytest.approx(len(before), rel=0.1)


def test_an_image_that_is_another_than_the_one_that_was_scored_is_refused(world: World, run: Path) -> None:
    wanted = world.wanted(run)["depth"]
    name = next(iter(wanted.hashes))
    with pytest.raises(InnerVisionError, match=r"is not the image that the run was scored on"):
        keep_pictures(run, {"depth": Wanted(wanted.task, {name: "0" * 16})}, **world.models)
    with pytest.raises(InnerVisionError, match=r"does not hold the image images/none.png"):
        keep_pictures(run, {"depth": Wanted(wanted.task, {"images/none.png": "0"})}, **world.models)
    assert not (run / "pictures/depth.json").exists()


def test_the_first_run_chooses_the_images_of_all(
    world: World, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(world.run, tmp_path / "other"))
    data = f"depth={world.root / 'DA-2K'},seg={world.root / 'coco'}"
    make_pictures([run, other], data, 5, **world.models)
    bars = capsys.readouterr().err.split("\r")
    assert any(
        text.startswith("2 of 3: pictures: ") and " 5/5 images " in text and " + the page" in text for text in bars
    )
    for target, count in (("depth", 3), ("seg", 2)):
        albums = [json.loads((each / f"pictures/{target}.json").read_text())["images"] for each in (run, other)]
        assert albums[0] == albums[1]
        assert len(albums[0]) == count
    with pytest.raises(InnerVisionError, match="cannot read"):
        make_pictures([run], str(tmp_path / "nothing"), 12)


def test_data_is_one_path_or_one_for_each_task() -> None:
    assert parse_data("scenes") == {"": "scenes"}
    assert parse_data("depth=a,b/c, seg=d") == {"depth": "a,b/c", "seg": "d"}
    with pytest.raises(InnerVisionError, match="names no path for seg"):
        parse_data("depth=a,seg=")


def test_images_are_drawn_as_for_the_scores_and_with_one_seed_for_all_layers(tmp_path: Path) -> None:
    trained = gen_runs.Trained(tmp_path)
    trained.evaluate(trained.run)
    options = {"mllm": trained.mllm, "targets": [trained.target], "progress": False}
    make_pictures([trained.run], str(trained.images), 1, **options)
    [(name, entry)] = json.loads((trained.run / "pictures/gen.json").read_text())["images"].items()
    shown = cells(trained.run, "gen", entry)
    target = trained.target.drawing(DrawSettings(steps=2, size=16))
    decoded = decode_layers(trained.run, read_image(trained.images / name), mllm=trained.mllm, targets=[target])["gen"]
    side = len(shown["expert"])
    for layer, drawn in decoded.layers.items():
        whole = torch.nn.functional.interpolate(drawn[None], (side, side), mode="bilinear", antialias=True)[0]
        np.testing.assert_allclose(shown[str(layer)], 255 * whole.permute(1, 2, 0).numpy(), atol=0.6)
