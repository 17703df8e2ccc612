"""The demo on a handful of scenes: everything is there, and nothing is done twice."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from innervision.data import read_panoptic
from innervision.engine.run import RunFolder
from innervision.report.files import read_scores
from innervision.world.demo import DRAW, EVALUATIONS, RUNS, choose_scene, demonstrate, truth_of
from innervision.world.scenes import CATEGORIES, render


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DRAW, "steps", 1)
        demonstrate(out, train=8, val=2, progress=False)
        yield out


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_it_ends_with_figures_and_scores_of_every_layer_and_task(demo: Path) -> None:
    for name in ("curves.png", "layers.png"):
        assert Image.open(demo / name).width > 1000
    assert (demo / "curves.pdf").read_bytes().startswith(b"%PDF")
    images = {path.name for path in (demo / "scenes/val2017").iterdir()}
    for name in RUNS:
        settings = RunFolder(demo / "runs" / name).settings()
        assert settings.mllm == f"world/{name}"
        assert settings.probe.kind == "ridge"
        for evaluation in EVALUATIONS:
            scores = read_scores(demo / "runs" / name, evaluation)
            targets = {"depth", "seg", "gen"} if evaluation == "similarity" else {evaluation}
            assert set(scores["target"]) == targets
            assert {Path(image).name for image in scores["image"]} <= images
            assert sorted(scores["layer"].dropna().unique()) == list(range(-1, 9))
            assert {"probe", "mean"} <= set(scores["source"])


def test_finished_work_is_left_alone(
    demo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the figures, which are drawn anew, here by nobody."""
    monkeypatch.setattr(
        "innervision.world.demo.plot_curves", lambda runs, out: [out.with_suffix(f".{kind}") for kind in ("png", "pdf")]
    )
    monkeypatch.setattr("innervision.world.demo.draw_scene", lambda runs, targets, scenes, out, index: out)
    before = files_of(demo)
    demonstrate(demo, train=8, val=2, progress=False)
    printed = capsys.readouterr().out
    for name in RUNS:
        for evaluation in EVALUATIONS:
            assert f"--- world/{name}: {evaluation} ---" in printed
    for name in ("curves.png", "layers.png"):
        assert str(demo / name) in printed
    assert files_of(demo) == before


def test_the_scene_that_is_shown_is_chosen_by_its_objects_alone() -> None:
    index = choose_scene(20)
    seen = [sum(item.named for item in render(0, 500_000_001 + i, 112).objects) for i in range(20)]
    assert index == 500_000_001 + seen.index(max(seen))


def test_its_truth_is_that_of_the_annotations(demo: Path) -> None:
    panoptic = read_panoptic(demo / "scenes", "val2017")
    for name in panoptic.images.names:
        truth = truth_of(render(0, int(Path(name).stem), 112))
        labels = panoptic.maps[name].labels()
        np.testing.assert_array_equal(truth["seg"], labels)
        assert panoptic.categories == [category["name"] for category in CATEGORIES]
        depth = np.asarray(Image.open(demo / "scenes/depth/val2017" / Path(name).with_suffix(".png")))
        assert depth.flat[truth["depth"].argmax()] == depth.min()
        image = np.asarray(Image.open(demo / "scenes/val2017" / name)) / 255
        assert np.abs(truth["gen"] - image).mean() < 0.02
