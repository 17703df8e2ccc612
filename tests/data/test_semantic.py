"""Semantic maps against the original's, and conversions that were stopped."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from innervision.cli import main
from innervision.data import semantic
from innervision.data.panoptic import PanopticMap
from innervision.data.semantic import write_semantic
from innervision.errors import InnerVisionError
from innervision.world.dataset import write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("semantic") / "scenes"
    write_scenes(out, train=0, val=7, size=64, progress=False)
    return out


@pytest.fixture
def coco(scenes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scenes, tmp_path / "coco", ignore=shutil.ignore_patterns("panoptic_semseg_*")))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_maps_equal_those_of_the_original_converter(shared: Path, tmp_path: Path) -> None:
    golden = shared / "golden/metrics"
    shutil.copytree(golden / "pan", tmp_path / "pan")
    written = write_semantic(tmp_path / "pan/panoptic.json", progress=False)
    assert (written.maps, written.missing) == (1, 0)
    expected = json.loads((golden / "pan_expected.json").read_text())
    with Image.open(written.folder / "a.png") as found, Image.open(golden / "pan/semseg_expected/a.png") as known:
        assert found.mode == known.mode == expected["mode"]
        np.testing.assert_array_equal(np.asarray(found), np.asarray(known))


def test_a_command_writes_them_beside_the_annotations(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "semantic", str(coco), "--split", "val2017", "--workers", "2"]) == 0
    folder = coco / "annotations/panoptic_semseg_val2017"
    assert f"{folder}  7 maps" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {
        path.name for path in (folder.parent / "panoptic_val2017").iterdir()
    }


def test_processes_write_the_same_files(coco: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "_CHUNK", 2)
    one = contents(write_semantic(scenes, workers=1, progress=False).folder)
    assert contents(write_semantic(coco, workers=3, progress=False).folder) == one


def test_an_interrupted_call_is_taken_up_again_and_does_nothing_twice(
    coco: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    labels = PanopticMap.labels

    def count(entry: PanopticMap) -> np.ndarray:
        if len(read) == 3:
            raise KeyboardInterrupt
        read.append(entry.path.name)
        return labels(entry)

    monkeypatch.setattr(PanopticMap, "labels", count)
    with pytest.raises(KeyboardInterrupt):
        write_semantic(coco, progress=False)
    assert sorted(contents(coco / "annotations/panoptic_semseg_val2017")) == sorted(read)

    def go_on(entry: PanopticMap) -> np.ndarray:
        assert entry.path.name not in read
        return labels(entry)

    monkeypatch.setattr(PanopticMap, "labels", go_on)
    written = write_semantic(coco, progress=False)
    assert contents(written.folder) == contents(write_semantic(scenes, progress=False).folder)


def test_maps_that_are_not_there_are_counted(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next((coco / "annotations/panoptic_val2017").iterdir()).unlink()
    assert main(["data", "semantic", str(coco)]) == 0
    assert "6 maps; 1 more are listed but not there" in capsys.readouterr().out
    shutil.rmtree(coco / "annotations/panoptic_val2017")
    with pytest.raises(InnerVisionError, match="none of the maps"):
        write_semantic(coco, progress=False)


def test_a_broken_map_is_named(coco: Path) -> None:
    path = next((coco / "annotations/panoptic_val2017").iterdir())
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InnerVisionError, match=path.name):
        write_semantic(coco, workers=2, progress=False)
    assert not (coco / "annotations/panoptic_semseg_val2017" / path.name).exists()
