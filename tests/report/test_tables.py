"""Scores averaged over images, and written as text."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from innervision.metrics.registry import Metric
from innervision.report.files import read_scores
from innervision.report.tables import format_table, summarize, tabulate, write_summary

IMAGES = [f"{name}.jpg" for name in "abcdefghi"]


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
    (run / "run.yaml").write_text("format: 2\nsettings: {mllm: world/tuned, protocol: standard}\nrecord: {}\n")
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


def test_shares_have_a_width_where_all_are_right():
    ones = [1.0] * 6
    assert only(summarize(rows(ones, metric="accuracy")), layer=1)["low"] < 0.9
    assert only(summarize(rows(ones, metric="cosine")), layer=1)["low"] == 1


def test_a_task_says_which_of_its_metrics_are_shares():
    share = {"hits": Metric("hits", "hits", share=True)}
    assert only(summarize(rows([1.0] * 6, metric="hits"), share), layer=1)["low"] < 0.9


# Writing


def lines_of(scores: pd.DataFrame, target: str = "depth") -> list[list[str]]:
    return [line.split() for line in format_table(summarize(scores), [target]).splitlines()]


def same(value: float) -> list[float]:
    return [value] * 6


def test_a_table_reads_from_vision_to_the_floors():
    constant = table(
        rows(same(0.61), layer=-1),
        rows(same(0.52), layer=0),
        rows(same(0.25), layer=1),
        rows(same(0.75), layer=2),
        rows(same(-0.02), layer=2, source="shuffled"),
        rows(same(0.125), layer=None, source="mean"),
    )
    lines = lines_of(constant)
    assert lines[0] == ["depth:", "6", "images,", "scored", "by", "the", "standard", "rule"]
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


def test_both_floors_of_a_layer_stand_beside_its_score():
    floors = table(
        rows(same(0.25), layer=1),
        rows(same(0.75), layer=2),
        rows(same(0.125), layer=1, source="blank"),
        rows(same(0.375), layer=2, source="blank"),
        rows(same(-0.02), layer=2, source="shuffled"),
        rows(same(0.5), layer=None, source="mean"),
    )
    text = format_table(summarize(floors), ["depth"])
    assert [line.split() for line in text.splitlines()[3:8]] == [
        ["layer", "probe", "[low,", "high]", "shuffled", "blank"],
        ["1", "0.250", "[0.250,", "0.250]", "0.125"],
        ["2", "0.750", "[0.750,", "0.750]", "-0.020", "0.375"],
        ["avg", "0.500", "[0.500,", "0.500]", "-0.020", "0.250"],
        ["mean", "0.500", "[0.500,", "0.500]"],
    ]
    assert len({len(line) for line in text.splitlines()[3:7]}) == 1  # what stands last is the one of blank
    assert re.search("^blank +the prediction where the MLLM is shown a plain grey image$", text, re.MULTILINE)


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


def test_each_rule_has_a_table_of_its_own_and_the_runs_protocol_is_named():
    summary = summarize(table(rows(same(0.1), metric="centred_cosine"), rows(same(0.2), protocol="paper")))
    text = format_table(summary, ["depth"], protocol="paper")
    standard, paper = text.split("depth: ")[1:]
    assert paper.startswith("6 images, run of the paper protocol, scored by the paper rule")
    assert "0.200 [0.200, 0.200]" in paper
    assert standard.startswith("6 images, run of the paper protocol, scored by the standard rule")
    assert "0.100 [0.100, 0.100]" in standard


def test_the_tables_of_a_run_name_its_protocol_and_its_tasks_metrics(tmp_path):
    run = write_run(tmp_path / "run", rows([0.123, 0.123], metric="sharpness:x"))
    metric = Metric("sharpness", "Sharpness", "how sharp", higher_is_better=False, number_format=".1f")
    facts = {"plan": {"protocol": "paper"}, "metrics": {"sharpness": asdict(metric)}}
    (run / "scores/similarity.json").write_text(json.dumps(facts))
    text = tabulate(str(run)).text
    assert text.startswith("depth: 2 images, run of the paper protocol, scored by the standard rule")
    assert "Sharpness (x)" in text
    assert "0.1 [-, -]" in text
    assert text.endswith("Sharpness           how sharp; lower is better")


def test_images_of_a_group_are_counted():
    grouped = table(*(rows([0.5] * n).assign(group=name) for name, n in (("indoor", 2), ("outdoor", 6))))
    lines = [line.split() for line in format_table(summarize(table(rows(same(0.5)), grouped)), ["depth"]).splitlines()]
    start = lines.index(["cosine", "by", "group"])
    assert lines[start + 2 : start + 4] == [["layer", "indoor", "outdoor"], ["images", "2", "6"]]


def test_a_mean_over_classes_that_few_images_have_bears_a_warning():
    classes = table(*(rows([0.2, 0.4, 0.3][:n] * 3, metric="miou").assign(group=str(n)) for n in (1, 3)))
    text = format_table(summarize(classes), ["depth"])
    assert "warning: 1 of the 2 classes are in fewer than 5 images. The intervals of mIoU do not hold." in text
    assert "warning" not in format_table(summarize(classes[classes["group"] == "3"]), ["depth"])


def four_metrics(sign: float) -> pd.DataFrame:
    metrics = ["explained_variance", "cosine", "centred_cosine", "token_cosine"]
    return table(
        *(rows([sign * 0.3, sign * 0.4] * 3, layer=layer, metric=metric) for layer in (1, 32) for metric in metrics),
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
    lines = lines_of(table(rows([0.5, 0.5]), rows([0.5, np.nan], layer=2)))
    assert lines[4] == ["1", "0.500", "[-,", "-]"]  # two images have no interval
    assert lines[5] == ["2", "nan", "[-,", "-]"]


def test_a_zero_has_no_sign():
    assert lines_of(rows(same(-1e-9)))[4] == ["1", "0.000", "[0.000,", "0.000]"]


def test_images_that_differ_between_lines_are_counted_as_a_range():
    text = format_table(summarize(table(rows([0.1, 0.2, 0.3]), rows([0.1, 0.2], layer=2))), ["depth"])
    assert text.startswith("depth: 2 to 3 images")


def test_an_unknown_metric_goes_by_its_key():
    assert ["sharpness"] in lines_of(rows([0.5, 0.5], metric="sharpness"))


def test_the_csv_holds_nothing_that_a_terminal_would_obey(tmp_path):
    scores = rows([0.1, 0.2], target="dep\x1b[31mth\x9b", metric="cosine").assign(group="a\u202eb\x07", weight=1.0)
    write_summary(summarize(scores), tmp_path / "a.csv")
    text = (tmp_path / "a.csv").read_bytes().decode()
    assert r"dep\x1b[31mth\x9b" in text
    assert r"a\u202eb\x07" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text.replace("\r\n", "\n"))
