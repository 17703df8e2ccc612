"""How far layers lie above floors: the paired difference over the images."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from innervision.metrics.registry import Metric
from innervision.report.compare import compare
from innervision.report.files import read_scores
from innervision.report.floors import above_floors, clear_of_floors
from page_runs import IMAGES, LAYERS, write_run

LEVELS = {layer: 0.5 + 0.02 * layer for layer in LAYERS}


def of(found: pd.DataFrame, layer: int | None) -> pd.Series:
    [number] = np.flatnonzero(found["layer"].isna() if layer is None else found["layer"].eq(layer).fillna(False))
    return found.iloc[number]


def test_the_interval_is_students_for_the_differences_of_each_image(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", LEVELS, floor=0.4, wobble=0.05)
    found = above_floors(read_scores(run, "similarity"))
    assert set(found["floor"]) == {"mean"}
    count = len(IMAGES)
    for layer, level in {**LEVELS, None: np.mean([LEVELS[layer] for layer in (1, 2, 3, 4)])}.items():
        differences = np.where(np.arange(count) % 2, -0.05, 0.05) + level - 0.4
        low, high = stats.t.interval(0.95, count - 1, differences.mean(), stats.sem(differences))
        row = of(found, layer)
        assert row[["mean", "low", "high"]].tolist() == pytest.approx([level - 0.4, low, high])
        assert row["images"] == count


def test_it_is_what_a_run_whose_probes_predict_the_floor_is_compared_with(tmp_path: Path) -> None:
    """Of a share that has groups, too, and of a floor with layers."""
    run = write_run(tmp_path / "a", LEVELS)
    table = read_scores(run, "depth")
    other = write_run(tmp_path / "b", dict.fromkeys(LAYERS, 0.45))
    shuffled = read_scores(other, "depth")
    shuffled = shuffled[shuffled["source"] == "probe"].assign(source="shuffled")
    found = above_floors(pd.concat([table, shuffled], ignore_index=True))
    expected = compare(run, other).differences
    expected = expected[(expected["metric"] == "accuracy") & expected["group"].isna()]
    found = found[found["floor"] == "shuffled"]
    for layer in (*LAYERS, None):
        columns = ["mean", "low", "high", "images"]
        assert of(found, layer)[columns].tolist() == pytest.approx(of(expected, layer)[columns].tolist())


def test_floors_that_say_nothing_of_a_metric_or_are_over_other_images_are_left_out(tmp_path: Path) -> None:
    table = read_scores(write_run(tmp_path / "a", LEVELS), "similarity").astype({"metric": object})
    own = table.assign(metric="nearest")
    metrics = {"nearest": Metric("nearest", "nearest", floors=("blank",))}
    assert above_floors(own, metrics).empty
    fewer = table[(table["source"] != "mean") | (table["image"] != IMAGES[0])]
    assert above_floors(fewer).empty
    assert len(above_floors(table)) == len(LAYERS) + 1


def test_a_layer_is_clear_of_all_floors_or_of_none_or_it_is_not_known(tmp_path: Path) -> None:
    """Above the mean by far, above another image's score at layer 4 alone, and of four images nothing is known."""
    table = read_scores(write_run(tmp_path / "a", LEVELS, floor=0.4, wobble=0.05), "similarity")
    other = read_scores(write_run(tmp_path / "b", dict.fromkeys(LAYERS, 0.57)), "similarity")
    shuffled = other[other["source"] == "probe"].assign(source="shuffled")
    both = pd.concat([table, shuffled], ignore_index=True)
    clear = clear_of_floors(both)
    assert set(clear["source"]) == {"probe"}
    assert {layer: bool(of(clear, layer)["clear"]) for layer in LAYERS} == {layer: layer == 4 for layer in LAYERS}
    few = both[both["image"].isin(IMAGES[:4])]
    assert clear_of_floors(few)["clear"].isna().all()
    assert clear_of_floors(table)["clear"].all()
    assert clear_of_floors(table[table["source"] == "probe"]).empty
