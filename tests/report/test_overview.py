"""What a table of scores says in a line for each metric."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from innervision.errors import InnerVisionError
from innervision.report.files import read_scores
from innervision.report.overview import Overview, format_overviews, overview_text, overviews, spans
from innervision.report.tables import read_summary, summarize, tabulate, write_summary

STEPS = np.array([-0.02, -0.01, 0.0, 0.0, 0.01, 0.02])  # of six images around each mean
IMAGES = [f"{name}.jpg" for name in "abcdef"]


def table(levels: dict[tuple[str, int | None], float], metric: str = "cosine", target: str = "depth") -> pd.DataFrame:
    """Scores of six images by source and layer, around these means."""
    parts = [
        pd.DataFrame({"image": IMAGES, "source": source, "value": level + STEPS}).assign(
            layer=pd.array([layer] * len(IMAGES), dtype="Int64")
        )
        for (source, layer), level in levels.items()
    ]
    return pd.concat(parts, ignore_index=True).assign(metric=metric, target=target, protocol="standard")


LEVELS: dict[tuple[str, int | None], float] = {
    ("probe", -1): 0.3,
    ("probe", 0): 0.5,
    ("probe", 1): 0.7,
    ("probe", 2): 0.6,
    ("shuffled", -1): 0.1,
    ("shuffled", 0): 0.1,
    ("shuffled", 1): 0.45,
    ("shuffled", 2): 0.59,
    ("mean", None): 0.4,
    ("expert", None): 0.9,
    ("plain", None): 0.95,
}


def only(scores: pd.DataFrame) -> Overview:
    [found] = overviews(summarize(scores), scores["target"].unique())
    return found


def test_the_best_layer_stands_with_its_floor_and_its_ceiling() -> None:
    found = only(table(LEVELS))
    assert (found.best.layer, found.best.mean) == (1, pytest.approx(0.7))
    assert (found.floor.source, found.floor.mean) == ("shuffled", pytest.approx(0.45))  # of that layer; mean is below
    assert (found.ceiling.source, found.ceiling.mean) == ("expert", pytest.approx(0.9))
    assert found.average.mean == pytest.approx(0.65)  # of the decoder layers 1 and 2


def test_layers_stand_out_that_clear_all_floors_image_by_image() -> None:
    found = only(table(LEVELS))
    assert found.layers == [-1, 0, 1, 2]
    assert found.below == [-1]  # below the mean; 0.60 and 0.59 overlap, but each image has 0.01 more


def test_where_lower_is_better_the_lowest_is_best_and_floors_lie_above() -> None:
    levels = {("probe", 1): 9.0, ("probe", 2): 5.0, ("probe", 3): 5.5, ("mean", None): 8.0, ("expert", None): 1.0}
    found = only(table(levels, "fid"))
    assert found.best.layer == 2
    assert found.floor.source == "mean"
    assert found.below == [1]


def test_without_intervals_no_layer_stands_out() -> None:
    found = only(table(LEVELS)[lambda rows: rows["image"].isin(IMAGES[:3])])
    assert found.best.layer == 1
    assert found.below == found.layers


def test_a_metric_without_a_finite_score_has_no_best_layer() -> None:
    assert not overviews(summarize(table({("probe", 1): np.nan})), ["depth"])


def test_each_target_takes_a_few_lines() -> None:
    metrics = ("cosine", "token_cosine", "centred_cosine", "explained_variance")
    levels = LEVELS | {(source, layer): 0.1 for source in ("probe", "shuffled") for layer in range(3, 33)}
    scores = pd.concat([table(levels, metric, target) for metric in metrics for target in ("depth", "seg")])
    text = format_overviews(summarize(scores), ["seg", "depth"], protocol="paper")
    lines = text.splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= 120
    assert lines[0] == "seg: 6 images, run of the paper protocol, scored by the standard rule"
    assert lines[2].split() == ["best", "probe", "[low,", "high]", "avg", "floor", "ceiling", "clear"]
    # 0.7 less Student's quantile of five degrees, 2.571, times the error of six values, 0.00577
    assert lines[3].split()[:4] == ["cosine", "1", "0.700", "[0.685,"]
    assert lines[3].split()[-6:] == ["0.450", "expert", "0.900", "3", "of", "34"]
    assert "centred cosine: vision, 3 to 32 do not clear all floors" in lines


def test_layers_are_written_in_short() -> None:
    assert spans([-1, 0, 1, 2, 3, 8, 10, 11]) == "vision, 0, 1 to 3, 8, 10 to 11"


# Of a run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run/scores").mkdir(parents=True)
    (tmp_path / "run/run.yaml").write_text("format: 2\nsettings: {mllm: m, protocol: standard}\nrecord: {}\n")
    grouped = pd.concat([table(LEVELS).assign(group=None), table(LEVELS).assign(group="NA")])
    pd.concat([table(LEVELS, target="seg"), grouped]).to_parquet(tmp_path / "run/scores/depth.parquet")
    return tmp_path / "run"


def test_what_was_written_as_csv_reads_the_same(run: Path) -> None:
    summary = summarize(read_scores(run, "depth"))
    fresh = overview_text(run, "depth")
    assert (run / "scores/depth.csv").exists()
    read = read_summary(run, "depth")
    assert overview_text(run, "depth") == fresh
    assert set(read["group"].dropna()) == {"NA"}
    both = [each.assign(group=each["group"].astype(object).fillna("")) for each in (read, summary)]
    pd.testing.assert_frame_equal(*both, check_dtype=False, check_categorical=False)


def test_what_is_read_once_is_written_and_not_computed_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_summary(run, "depth")
    monkeypatch.setattr("innervision.report.tables.summarize", None)
    assert read_summary(run, "depth")["mean"].tolist() == first["mean"].tolist()


def test_names_that_the_file_would_not_hold_as_they_are_are_not_written(run: Path) -> None:
    table(LEVELS, target="seg\x1b[31m").to_parquet(run / "scores/depth.parquet")
    assert set(read_summary(run, "depth")["target"]) == {"seg\x1b[31m"}
    assert not (run / "scores/depth.csv").exists()


def test_nothing_is_written_beside_a_link_or_where_nothing_may_be_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of a run in the Hub's cache are links."""
    table_file = run / "scores/depth.parquet"
    table_file.rename(tmp_path / "blob")
    table_file.symlink_to(tmp_path / "blob")
    linked = read_summary(run, "depth")
    assert not (run / "scores/depth.csv").exists()
    table_file.unlink()
    (tmp_path / "blob").rename(table_file)

    def refuse(*_: object) -> None:
        raise InnerVisionError("the disk may only be read")

    monkeypatch.setattr("innervision.report.tables.atomic_write", refuse)
    assert read_summary(run, "depth")["mean"].tolist() == linked["mean"].tolist()


def test_a_csv_that_is_older_than_the_scores_is_not_taken(run: Path) -> None:
    summary = tabulate(run, "depth").summary
    write_summary(summary.assign(mean=0.123), run / "scores/depth.csv")
    assert set(read_summary(run, "depth")["mean"]) == {0.123}
    table(LEVELS).to_parquet(run / "scores/depth.parquet")
    assert 0.123 not in set(read_summary(run, "depth")["mean"])


def test_targets_stand_in_the_order_of_the_run(run: Path) -> None:
    (run / "scores/depth.json").write_text(json.dumps({"plan": {"experts": {"seg": {}, "depth": {}}}}))
    assert overview_text(run, "depth").index("seg: ") < overview_text(run, "depth").index("depth: ")
