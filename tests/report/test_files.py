"""What is read of a run: tables, what is written beside them, and settings."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from innervision.errors import InnerVisionError
from innervision.metrics.registry import Metric
from innervision.report.files import Facts, evaluations_of, read_facts, read_scores, read_settings, run_protocol

SCORES = pd.DataFrame(
    {
        "image": ["a.jpg", "b.jpg"] * 2,
        "target": "depth",
        "layer": pd.array([1, 1, None, None], dtype="Int64"),
        "source": ["probe", "probe", "mean", "mean"],
        "metric": "cosine",
        "protocol": "standard",
        "value": np.array([0.5, 0.7, 0.2, 0.4]),
    }
)


def write_run(run: Path, scores: pd.DataFrame = SCORES, protocol: str = "standard") -> Path:
    (run / "scores").mkdir(parents=True)
    settings = f"settings: {{mllm: world/tuned, protocol: {protocol}}}"
    (run / "run.yaml").write_text(f"format: 2\n{settings}\nrecord: {{}}\n")
    scores.to_parquet(run / "scores" / "similarity.parquet")
    return run


# Tables


def test_scores_are_read_as_written(tmp_path):
    scores = read_scores(write_run(tmp_path / "run", SCORES))
    assert scores["value"].tolist() == SCORES["value"].tolist()
    assert scores["layer"].dtype == "Int64"
    assert scores["layer"].isna().sum() == 2
    assert scores["image"].tolist() == SCORES["image"].tolist()


def test_a_missing_run_says_how_to_make_one(tmp_path):
    with pytest.raises(InnerVisionError, match="absent does not exist; innervision train makes runs"):
        read_scores(tmp_path / "absent")


def test_a_folder_that_is_no_run_is_named_so(tmp_path):
    with pytest.raises(InnerVisionError, match=r"is not a run folder: it has no run\.yaml"):
        read_scores(tmp_path)


@pytest.mark.parametrize(("evaluation", "option"), [("similarity", "--images"), ("depth", "--data")])
def test_a_run_not_yet_evaluated_says_which_command_to_run(tmp_path, evaluation, option):
    (tmp_path / "run.yaml").write_text("{format: 2, settings: {}, record: {}}")
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


# What is written beside them


def write_facts(run: Path, content: object) -> Path:
    (run / "scores/similarity.json").write_text(json.dumps(content))
    return run


def test_older_tables_tell_nothing(tmp_path):
    run = write_run(tmp_path / "run")
    assert read_facts(run, "similarity") == Facts()
    assert read_facts(write_facts(run, {"versions": {}}), "similarity") == Facts()


def test_metrics_of_tasks_are_read_and_what_this_version_does_not_know_is_ignored(tmp_path):
    metric = Metric("sharpness", "Sharpness", number_format=".1f", floors=("mean",))
    run = write_facts(write_run(tmp_path / "run"), {"metrics": {"sharpness": {**asdict(metric), "colour": "red"}}})
    assert read_facts(run, "similarity").metrics == {"sharpness": metric}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"metrics": {"a": {"key": "a", "name": 3}}}, "name of the metric 'a' must be a str, not 3"),
        ({"metrics": {"a": {"name": "A"}}}, "key"),
        ({"metrics": {"a": "A"}}, "items"),
        ({"images": ["a.jpg"]}, "images holds no names"),
        ([], "no JSON object"),
    ],
)
def test_what_is_wrong_is_an_error_that_names_the_file(tmp_path, content, said):
    run = write_facts(write_run(tmp_path / "run"), content)
    with pytest.raises(InnerVisionError, match=rf"similarity\.json cannot be read \(.*{said}.*--overwrite"):
        read_facts(run, "similarity")


def test_similarity_comes_before_the_tasks(tmp_path):
    run = write_run(tmp_path / "run")
    for name in ("depth", "seg"):
        SCORES.to_parquet(run / f"scores/{name}.parquet")
    assert evaluations_of(run) == ["similarity", "depth", "seg"]


# Settings


def test_the_protocol_is_that_of_the_scores_plan_else_that_of_the_run(tmp_path):
    run = write_run(tmp_path / "run", protocol="paper")
    assert run_protocol(run, Facts()) == "paper"
    assert run_protocol(run, Facts(plan={"protocol": "standard"})) == "standard"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("mllm: world/tuned", "has format 1, and this version of InnerVision reads format 2"),
        ("format: 3\nsettings: {}", "has format 3, and this version of InnerVision reads format 2"),
        ("format: 2\nmllm: x", "lacks the settings or the record"),
        ("mllm: [", "cannot be read"),
        ("", "does not hold the settings of a run"),
    ],
)
def test_a_run_of_another_form_is_refused_by_name(tmp_path, content, said):
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(InnerVisionError, match=rf"run\.yaml {said}"):
        read_settings(tmp_path)
