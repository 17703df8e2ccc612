"""What of a run is done, and what is missing."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from innervision.config import TrainSettings
from innervision.engine.run import RunFolder
from innervision.errors import InnerVisionError
from innervision.report.status import find_runs, format_status, read_status


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of two targets that was begun."""
    folder = RunFolder(tmp_path / "runs/a")
    experts = {name: {"kind": kind} for name, kind in {"depth": "depth", "dino": "backbone"}.items()}
    settings = TrainSettings(mllm="some/mllm", images="i", out=str(folder.path), targets="depth,dino:backbone=x/y")
    folder.write_settings(settings, {"experts": experts})
    return folder


def train(run: RunFolder) -> None:
    for name in run.record()["experts"]:
        run.probes(name).parent.mkdir(exist_ok=True)
        run.probes(name).touch()


def score(run: RunFolder, table: str, images: int) -> None:
    run.scores.mkdir(exist_ok=True)
    names = [str(number) for number in range(images)]
    columns = {"target": "depth", "layer": 1, "source": "probe", "metric": "cosine", "protocol": "standard"}
    pd.DataFrame({"image": names, **columns, "value": 0.5}).to_parquet(run.scores / f"{table}.parquet")
    (run.scores / f"{table}.json").write_text(json.dumps({"images": dict.fromkeys(names, "x")}))


def test_a_training_says_how_far_it_is(run: RunFolder) -> None:
    assert read_status(run.path).probes == "not begun"
    run.log.parent.mkdir()
    run.log.write_text('{"step": 1, "of": 4}\n{"step": 2, "of": 4}\n')
    assert read_status(run.path).probes == "step 2 of 4"
    train(run)
    assert read_status(run.path).probes == "trained"


def test_what_is_not_scored_is_what_the_targets_can_be_scored_by(run: RunFolder) -> None:
    assert read_status(run.path).missing == "similarity, depth"
    score(run, "similarity", 7)
    score(run, "similarity@val-b", 1200)
    assert read_status(run.path).missing == "depth"
    assert read_status(run.path).scores == "similarity 7, similarity@val-b 1,200"
    score(run, "depth", 3)
    assert read_status(run.path).missing == ""


def test_a_scoring_that_was_stopped_says_how_much_is_done(run: RunFolder) -> None:
    parts = run.scores / ".depth"
    parts.mkdir(parents=True)
    (parts / "plan.json").write_text(json.dumps({"num_images": 33, "batch_size": 16}))
    (parts / "000000.parquet").touch()
    assert read_status(run.path).missing == "depth (1 of 3 batches done), similarity"


def test_a_run_that_cannot_be_read_does_not_hide_the_others(run: RunFolder) -> None:
    other = run.path.parent / "b"
    other.mkdir()
    (other / "run.yaml").write_text("format: 1\n")
    lines = format_status([read_status(each) for each in find_runs(run.path.parent)]).splitlines()
    assert lines[1].split()[:5] == [str(run.path), "some/mllm", "depth,", "dino", "not"]
    assert "has format 1" in lines[2]


def test_controls_are_told_from_what_they_control(run: RunFolder) -> None:
    run.write_settings(replace(run.settings(), random_weights="llm"), run.record())
    assert read_status(run.path).mllm == "some/mllm, random LLM"


def test_runs_are_found_in_a_folder_and_in_folders_of_it(run: RunFolder, tmp_path: Path) -> None:
    assert find_runs(run.path) == find_runs(tmp_path) == find_runs(tmp_path / "runs") == [run.path]
    with pytest.raises(InnerVisionError, match="does not exist"):
        find_runs(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InnerVisionError, match="holds no run"):
        find_runs(tmp_path / "empty")


def test_finished_scores_of_a_run_that_is_only_read_need_neither_torch_nor_scipy(run: RunFolder) -> None:
    from innervision.report.tables import tabulate, write_summary

    train(run)
    score(run, "similarity", 9)
    write_summary(tabulate(run.path).summary, run.scores / "similarity.csv")
    for path in (run.scores, run.path):
        path.chmod(0o555)
    code = "import sys\nfrom innervision.cli import main\nassert main(['show', sys.argv[1]]) == 0\n"
    code += "assert not {'torch', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(run.path)], env=os.environ, capture_output=True, text=True)
    for path in (run.path, run.scores):
        path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert "depth: 9 images, run of the standard protocol" in done.stdout
    assert "0.500 [0.500, 0.500]" in done.stdout
