"""The demo on a handful of scenes: everything is there, and nothing is done twice."""

import io
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tools.world.distill import LOSSES

from innervision.data import read_panoptic
from innervision.engine.run import RunFolder
from innervision.report.files import read_scores
from innervision.world.demo import DISTILLED, EVALUATIONS, RUNS, demonstrate
from innervision.world.demo.findings import choose_scene, truth_of
from innervision.world.scenes import CATEGORIES, render


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Run it with two processes; give its folder, and the lines that it prints."""
    out, printed = tmp_path_factory.mktemp("demo") / "out", io.StringIO()
    with redirect_stdout(printed):
        demonstrate(out, train=8, val=6, workers=2, progress=False)
    return out, printed.getvalue().splitlines()


@pytest.fixture
def demo(shown: tuple[Path, list[str]]) -> Path:
    return shown[0]


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_layers_that_are_marked_are_those_that_were_taught() -> None:
    assert {target: loss.layer for target, loss in LOSSES.items()} == DISTILLED


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


def test_finished_work_is_left_alone(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures and tables are written anew, the figures here by nobody."""
    monkeypatch.setattr("innervision.world.demo.findings.draw_curves", lambda runs, out: [out.with_suffix(".png")] * 2)
    monkeypatch.setattr("innervision.world.demo.findings.draw_scene", lambda runs, scenes, out: out)
    before = files_of(demo)
    demonstrate(demo, train=8, val=6, progress=False)
    after = files_of(demo)
    assert {path for path in before if after[path] != before[path]} <= {"tables.txt", "notes.txt"}
    assert after.keys() == before.keys()


def test_what_is_printed_is_short_and_names_the_files(shown: tuple[Path, list[str]]) -> None:
    demo, lines = shown
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 120 + len(str(demo))
    for name in RUNS:
        assert sum(line.startswith(f"{name} ") for line in lines) == len(DISTILLED)
    for name in ("curves.png", "layers.png", "tables.txt"):
        assert (demo / name).is_file()
        assert any(line.startswith(str(demo / name)) for line in lines)


def test_a_row_has_the_best_layer_and_its_scores(shown: tuple[Path, list[str]]) -> None:
    demo, lines = shown
    rows = [line.split() for line in lines if line.startswith("tuned ")]
    layers = {"vision": -1, "emb": 0} | {str(layer): layer for layer in range(1, 9)}
    for row, target in zip(rows, DISTILLED, strict=True):
        similar = _means(read_scores(demo / "runs/tuned", "similarity"), target, "centred_cosine", "probe")
        assert similar.idxmax() == layers[row[1]]
        assert float(row[2]) == pytest.approx(similar.max(), abs=6e-4)
    accuracy = read_scores(demo / "runs/tuned", "depth")
    of_best = accuracy[(accuracy["layer"] == layers[rows[0][1]]) & (accuracy["protocol"] == "standard")]
    pairs = of_best[(of_best["source"] == "probe") & (of_best["metric"] == "accuracy") & of_best["group"].isna()]
    expected = float(np.average(pairs["value"], weights=pairs["weight"]))
    assert float(rows[0][5]) == pytest.approx(expected, abs=6e-4)


def _means(scores: pd.DataFrame, target: str, metric: str, source: str) -> pd.Series:
    chosen = scores[["target", "metric", "source"]].eq([target, metric, source]).all(axis=1)
    return scores[chosen].groupby("layer")["value"].mean()


def test_the_scene_that_is_shown_is_that_of_median_similarity(demo: Path) -> None:
    tables = pd.concat([read_scores(demo / "runs" / name, "similarity") for name in RUNS])
    chosen = tables[(tables["metric"] == "centred_cosine") & (tables["source"] == "probe")]
    means = {image: rows["value"].mean() for image, rows in chosen.groupby("image", observed=True)}
    assert len(means) == 6
    shown = choose_scene([demo / "runs" / name for name in RUNS])
    [own] = [mean for image, mean in means.items() if int(Path(str(image)).stem) == shown]
    assert sum(mean < own for mean in means.values()) == 2  # and three above


def test_its_truth_is_that_of_the_annotations(demo: Path) -> None:
    panoptic = read_panoptic(demo / "scenes", "val2017")
    for name in panoptic.images.names:
        truth = truth_of(render(0, int(Path(name).stem), 112))
        labels = panoptic.maps[name].labels()
        np.testing.assert_array_equal(truth["seg"], labels)
        assert panoptic.categories == [category["name"] for category in CATEGORIES]
        depth = np.asarray(Image.open(demo / "scenes/depth/val2017" / Path(name).with_suffix(".png")))
        assert depth.flat[truth["depth"].argmin()] == depth.min()
        image = np.asarray(Image.open(demo / "scenes/val2017" / name)) / 255
        assert np.abs(truth["gen"] - image).mean() < 0.02
