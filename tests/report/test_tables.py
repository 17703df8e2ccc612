from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from innervision.errors import InnerVisionError
from innervision.report.tables import format_table, read_scores, summarize

IMAGES = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def rows(values, *, layer=1, source="probe", metric="cosine", target="depth", protocol="standard"):
    """One row per value; the images are a.jpg, b.jpg and so on, as far as the values go."""
    return pd.DataFrame(
        {
            "image": IMAGES[: len(values)],
            "target": target,
            "layer": pd.array([layer] * len(values), dtype="Int64"),
            "source": source,
            "metric": metric,
            "protocol": protocol,
            "value": np.array(values, dtype=float),
        }
    )


def table(*parts: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True)


def write_run(run: Path, scores: pd.DataFrame) -> Path:
    (run / "scores").mkdir(parents=True)
    (run / "run.yaml").write_text("mllm: world/tuned\ntargets: [depth]\n")
    scores.to_parquet(run / "scores" / "similarity.parquet")
    return run


def only(summary: pd.DataFrame, **wanted) -> pd.Series:
    """The one row that has these values; layer=None asks for the row without a layer."""
    for name, value in wanted.items():
        summary = summary[summary[name].isna() if value is None else summary[name] == value]
    assert len(summary) == 1
    return summary.iloc[0]


SCORES = table(
    rows([0.5, 0.7], layer=-1),
    rows([0.4, 0.6], layer=0),
    rows([0.1, 0.3], layer=1),
    rows([0.5, 0.9], layer=2),
    rows([0.0, 0.2], layer=1, source="shuffled"),
    rows([0.1, 0.1], layer=2, source="shuffled"),
    rows([0.2, 0.4], layer=None, source="mean"),
)


# Reading


def test_scores_are_read_as_written(tmp_path):
    scores = read_scores(write_run(tmp_path / "run", SCORES))
    assert scores["value"].tolist() == SCORES["value"].tolist()
    assert scores["layer"].dtype == "Int64"
    assert scores["layer"].isna().sum() == 2
    assert scores["image"].tolist() == SCORES["image"].tolist()


def test_a_missing_run_says_how_to_make_one(tmp_path):
    with pytest.raises(InnerVisionError, match=r"absent does not exist\. .*innervision train .*--out .*absent"):
        read_scores(tmp_path / "absent")


def test_a_folder_that_is_no_run_is_named_so(tmp_path):
    with pytest.raises(InnerVisionError, match=r"is not a run \(it has no run\.yaml\)"):
        read_scores(tmp_path)


@pytest.mark.parametrize(("evaluation", "option"), [("similarity", "--images"), ("depth", "--data")])
def test_a_run_not_yet_evaluated_says_which_command_to_run(tmp_path, evaluation, option):
    (tmp_path / "run.yaml").write_text("mllm: world/tuned\n")
    command = f"innervision evaluate {evaluation} {tmp_path} {option} PATH"
    with pytest.raises(InnerVisionError, match=f"has no {evaluation} scores yet.*{command}"):
        read_scores(tmp_path, evaluation)


@pytest.mark.parametrize("content", [b"not parquet", b""])
def test_a_broken_file_is_not_a_score_table(tmp_path, content):
    run = write_run(tmp_path / "run", SCORES)
    (run / "scores/similarity.parquet").write_bytes(content)
    with pytest.raises(InnerVisionError, match=r"similarity\.parquet is not a score table.*evaluate similarity"):
        read_scores(run)


def test_a_table_without_a_column_is_not_a_score_table(tmp_path):
    run = write_run(tmp_path / "run", SCORES.drop(columns="protocol"))
    with pytest.raises(InnerVisionError, match=r"is not a score table.*protocol"):
        read_scores(run)


def test_an_empty_table_is_refused(tmp_path):
    with pytest.raises(InnerVisionError, match="holds no scores"):
        read_scores(write_run(tmp_path / "run", SCORES.iloc[:0]))


# Averaging


def test_means_are_over_images():
    summary = summarize(SCORES)
    assert only(summary, source="probe", layer=-1)["mean"] == pytest.approx(0.6)
    assert only(summary, source="probe", layer=1)["mean"] == pytest.approx(0.2)
    assert only(summary, source="shuffled", layer=2)["mean"] == pytest.approx(0.1)
    assert only(summary, source="mean")["mean"] == pytest.approx(0.3)
    assert set(summary["images"]) == {2}


def test_a_null_layer_averages_the_decoder_layers_alone():
    summary = summarize(SCORES)
    assert only(summary, source="probe", layer=None)["mean"] == pytest.approx((0.1 + 0.3 + 0.5 + 0.9) / 4)
    assert only(summary, source="shuffled", layer=None)["mean"] == pytest.approx((0.0 + 0.2 + 0.1 + 0.1) / 4)


def test_intervals_equal_scipys():
    values = np.random.default_rng(0).normal(size=4)
    row = only(summarize(rows(values)), layer=1)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=1000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_layers_are_averaged_within_each_image_first():
    # the two layers cancel in every image, so their average does not vary at all
    summary = summarize(table(rows([0.1, 0.9, 0.4], layer=1), rows([0.9, 0.1, 0.6], layer=2)))
    average = only(summary, layer=None)
    assert (average["mean"], average["low"], average["high"]) == pytest.approx((0.5, 0.5, 0.5))
    assert only(summary, layer=1)["low"] < 0.3


def test_targets_metrics_and_protocols_are_kept_apart():
    summary = summarize(
        table(
            rows([0.1, 0.1]),
            rows([0.2, 0.2], target="seg"),
            rows([0.3, 0.3], metric="centred_cosine"),
            rows([0.4, 0.4], protocol="paper"),
        )
    )
    layer = summary[summary["layer"] == 1]
    assert layer["mean"].tolist() == pytest.approx([0.3, 0.4, 0.1, 0.2])  # sorted by target, metric, protocol
    assert summary[summary["layer"].isna()]["mean"].tolist() == pytest.approx([0.3, 0.4, 0.1, 0.2])


def test_the_order_of_the_rows_does_not_matter():
    shuffled = SCORES.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(summarize(shuffled), summarize(SCORES))


def test_categories_and_strings_give_the_same(tmp_path):
    read = read_scores(write_run(tmp_path / "run", SCORES))
    pd.testing.assert_frame_equal(summarize(read), summarize(SCORES))


def test_groups_may_hold_different_images():
    scores = table(rows([0.1, 0.2, 0.3, 0.8], layer=1), rows([0.5, 0.7], layer=2))
    summary = summarize(scores)
    assert only(summary, layer=1)["mean"] == pytest.approx(0.35)
    assert only(summary, layer=2)["mean"] == pytest.approx(0.6)
    assert summary["images"].tolist() == [4, 2, 2]
    # the average is over the two images that have both layers
    assert only(summary, layer=None)["mean"] == pytest.approx((0.3 + 0.45) / 2)


def test_without_an_image_that_has_all_layers_there_is_no_average():
    scores = table(rows([0.1, 0.2], layer=1), rows([0.1, 0.2, 0.5, 0.7], layer=2).iloc[2:])
    assert summarize(scores)["layer"].tolist() == [1, 2]


def test_nan_shows_in_its_layer_and_the_average_alone():
    summary = summarize(table(rows([0.1, np.nan], layer=1), rows([0.5, 0.7], layer=2)))
    for layer in (1, None):
        assert only(summary, layer=layer)[["mean", "low", "high"]].isna().all()
    assert only(summary, layer=2)["mean"] == pytest.approx(0.6)
    assert np.isfinite(only(summary, layer=2)["low"])


def test_minus_infinity_is_the_mean_of_values_that_hold_it():
    row = only(summarize(rows([0.1, -np.inf])), layer=1)
    assert row["mean"] == -np.inf
    assert np.isnan(row["low"])


def test_the_same_score_twice_is_an_error():
    with pytest.raises(InnerVisionError, match="2 scores stand in the table more than once"):
        summarize(table(SCORES, rows([0.1, 0.3], layer=1)))


# Writing


def lines_of(scores: pd.DataFrame, target: str = "depth") -> list[list[str]]:
    return [line.split() for line in format_table(summarize(scores), [target]).splitlines()]


def test_a_table_reads_from_vision_to_the_floors():
    constant = table(
        rows([0.61, 0.61], layer=-1),
        rows([0.52, 0.52], layer=0),
        rows([0.25, 0.25], layer=1),
        rows([0.75, 0.75], layer=2),
        rows([-0.02, -0.02], layer=2, source="shuffled"),
        rows([0.125, 0.125], layer=None, source="mean"),
    )
    lines = lines_of(constant)
    assert lines[0] == ["depth:", "2", "images,", "standard", "protocol"]
    assert lines[2:10] == [
        ["cosine"],
        ["layer", "probe", "[low,", "high]", "shuffled"],
        ["vision", "0.610", "[0.610,", "0.610]"],
        ["0", "0.520", "[0.520,", "0.520]"],
        ["1", "0.250", "[0.250,", "0.250]"],
        ["2", "0.750", "[0.750,", "0.750]", "-0.020"],
        ["avg", "0.500", "[0.500,", "0.500]", "-0.020"],
        ["mean", "0.125", "[0.125,", "0.125]"],
    ]


def test_every_word_of_a_table_is_explained_below_it():
    text = format_table(summarize(SCORES), ["depth"])
    for word in ("probe", "shuffled", "mean", "[low, high]", "vision, 0", "avg", "cosine"):
        assert f"\n{word}  " in text
    assert "95% interval" in text
    assert "decoder layers, 1 to 2" in text


def test_what_the_words_mean_stands_once_below_all_tables():
    text = format_table(summarize(table(SCORES, rows([0.9, 0.9], target="seg"))), ["seg", "depth"])
    assert text.index("seg: 2 images") < text.index("depth: 2 images")
    assert text.count("95% interval") == 1


def test_a_table_shows_its_target_alone():
    text = format_table(summarize(table(SCORES, rows([0.999, 0.999], target="seg"))), ["depth"])
    assert text.startswith("depth: 2 images")
    assert "0.999" not in text


def test_each_protocol_has_a_table_of_its_own():
    text = format_table(summarize(table(rows([0.1, 0.1]), rows([0.2, 0.2], protocol="paper"))), ["depth"])
    standard, paper = text.split("depth: ")[1:]
    assert paper.startswith("2 images, paper protocol")
    assert "0.200 [0.200, 0.200]" in paper
    assert standard.startswith("2 images, standard protocol")
    assert "0.100 [0.100, 0.100]" in standard


def four_metrics(sign: float) -> pd.DataFrame:
    metrics = ["explained_variance", "cosine", "centred_cosine", "token_cosine"]
    return table(
        *(rows([sign * 0.3, sign * 0.4], layer=layer, metric=metric) for layer in (1, 32) for metric in metrics),
        *(rows([-0.1, -0.2], layer=layer, source="shuffled", metric=metrics[0]) for layer in (1, 32)),
        *(rows([0.1, 0.2], layer=layer, source="shuffled", metric=metrics[1]) for layer in (1, 32)),
        *(rows([0.1, 0.2], layer=layer, source="shuffled", metric=metrics[2]) for layer in (1, 32)),
        *(rows([0.1, 0.2], layer=layer, source="shuffled", metric=metrics[3]) for layer in (1, 32)),
        *(rows([0.1, 0.2], layer=None, source="mean", metric=metric) for metric in metrics),
    )


def test_four_metrics_stand_side_by_side_within_120_columns():
    lines = format_table(summarize(four_metrics(1)), ["depth"]).splitlines()
    assert lines[2].split() == ["cosine", "token", "cosine", "centred", "cosine", "explained", "variance"]
    assert max(map(len, lines)) <= 120
    ends = {len(line) for line in lines[2:7]}  # from the header to the average
    assert len(ends) == 1


def test_metrics_that_do_not_fit_go_below():
    lines = format_table(summarize(four_metrics(-1)), ["depth"]).splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[2].split() == ["cosine", "token", "cosine", "centred", "cosine"]
    assert lines[9].split() == ["explained", "variance"]
    assert lines[10].split() == ["layer", "probe", "[low,", "high]", "shuffled"]
    assert [line.split()[0] for line in lines[11:15]] == ["1", "32", "avg", "mean"]


def test_what_is_not_known_is_not_invented():
    lines = lines_of(table(rows([0.5]), rows([np.nan], layer=2)))
    assert lines[4] == ["1", "0.500", "[-,", "-]"]  # one image has no interval
    assert lines[5] == ["2", "nan", "[-,", "-]"]


def test_a_zero_has_no_sign():
    assert lines_of(rows([-1e-9, -1e-9]))[4] == ["1", "0.000", "[0.000,", "0.000]"]


def test_images_that_differ_between_lines_are_counted_as_a_range():
    text = format_table(summarize(table(rows([0.1, 0.2, 0.3]), rows([0.1, 0.2], layer=2))), ["depth"])
    assert text.startswith("depth: 2 to 3 images")


def test_an_unknown_metric_goes_by_its_key():
    assert ["accuracy"] in lines_of(rows([0.5, 0.5], metric="accuracy"))


def test_an_unknown_target_names_those_there_are():
    with pytest.raises(InnerVisionError, match="no scores of the target 'gen', only of: depth"):
        format_table(summarize(SCORES), ["gen"])
