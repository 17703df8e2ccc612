"""Training in several processes: the probes of one, and an end for all of them when one fails."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from innervision.config import ProbeSettings, TrainSettings
from innervision.engine.run import RunFolder
from innervision.probes import read_metadata
from stand_ins import write_noise_images
from together import run_together
from train_runs import RESAMPLER, Alone, assert_close, train, train_differently

pytestmark = pytest.mark.usefixtures("one_thread")


def facts_of(out: str, target: str) -> dict[str, Any]:
    return read_metadata(Path(out) / f"probes/{target}.safetensors")["facts"]


def log_of(out: str) -> list[dict[str, Any]]:
    lines = (Path(out) / "train/log.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "images_per_second"} for line in lines]


def assert_same_exact_probes(out: str, other: str) -> None:
    assert_close(out, other, 1e-6)  # files hold float32
    assert log_of(out) == log_of(other)
    assert (Path(out) / "train/bad_images.json").read_text() == (Path(other) / "train/bad_images.json").read_text()
    for target in ("depth", "gen"):
        facts, others = facts_of(out, target), facts_of(other, target)
        assert facts["images"] == others["images"] == 18
        for layer, here in facts["held_out"].items():
            there = others["held_out"][layer]
            assert here["images"] == there["images"]
            assert here["penalty"] == there["penalty"]
            assert here["explained_variance"] == pytest.approx(there["explained_variance"], rel=1e-9, abs=1e-12)
            assert here["unseen"] == pytest.approx(there["unseen"], abs=1e-12)


def test_exact_probes_of_several_processes_are_those_of_one(
    settings: TrainSettings, folder: Path, alone: Alone
) -> None:
    """Bad images, the log, the held-out images, the curve over the number of images, and the probes."""
    settings = replace(settings, mllm=str(folder / "qwen2_vl"))
    assert run_together(2, train, settings) == [["depth", "gen"], []]
    assert_same_exact_probes(alone(settings), settings.out)
    assert len(facts_of(settings.out, "depth")["held_out"]["4"]["images"]) > 2
    assert list(json.loads((Path(settings.out) / "train/bad_images.json").read_text())) == ["0004.png"]


def test_trained_probes_of_several_processes_are_those_of_one(
    settings: TrainSettings, folder: Path, alone: Alone
) -> None:
    """25 steps; in the last of each epoch there are 3 images, of which one process may have none that is good."""
    settings = replace(settings, mllm=str(folder / "qwen2_vl"), probe=RESAMPLER, epochs=5)
    assert run_together(3, train, settings) == [["depth", "gen"], [], []]
    assert_close(alone(settings), settings.out, 1e-5)
    for mine, theirs in zip(log_of(settings.out), log_of(alone(settings)), strict=True):
        assert mine["learning_rate"] == theirs["learning_rate"]
        for name, by_layer in mine["loss"].items():
            assert by_layer == pytest.approx(theirs["loss"][name], rel=1e-5)
    assert len(log_of(settings.out)) == 25


@pytest.mark.parametrize(("probe", "count"), [(RESAMPLER, 2), (ProbeSettings(), 5)])
def test_a_process_may_have_no_image_at_all(
    settings: TrainSettings, alone: Alone, tmp_path: Path, probe: ProbeSettings, count: int
) -> None:
    """Of five images, which steps of 1, 1, 1 and 2 take, the third process has none."""
    images = write_noise_images(tmp_path / "few", count, size=(40, 60))
    settings = replace(settings, images=str(images), probe=probe)
    assert run_together(3, train, settings) == [["depth", "gen"], [], []]
    assert_close(alone(settings), settings.out, 1e-5)


@pytest.mark.parametrize(("probe", "who", "number", "resumed_by"), [("ridge", 0, 4, 3), ("resampler", 2, 5, 1)])
def test_where_one_is_killed_the_others_end_and_any_number_resumes(
    settings: TrainSettings, alone: Alone, probe: str, who: int, number: int, resumed_by: int
) -> None:
    if probe == "resampler":
        settings = replace(settings, probe=RESAMPLER, epochs=3)
    often = replace(settings, save_minutes=0)
    found = run_together(3, train, often, False, {who: (number, "SIGKILL")})
    assert found[who] is None
    assert all("was killed or stands still" in each or "has ended" in each for each in found if each is not None)
    if resumed_by == 1:
        train(0, often, True)
    else:
        assert run_together(resumed_by, train, often, True)[0] == ["depth", "gen"]
    if probe == "ridge":
        assert_same_exact_probes(alone(settings), settings.out)
    else:
        assert_close(alone(settings), settings.out, 1e-5)
    changed = RunFolder(settings.out).record().get("notes", [])
    expected = [] if resumed_by == 3 else ["the number of processes is 1"]
    assert [note.partition(" from step")[0] for note in changed] == expected


def test_a_request_to_stop_to_one_stops_all_after_the_same_step(settings: TrainSettings, alone: Alone) -> None:
    settings = replace(settings, probe=RESAMPLER, epochs=3)
    stopped = "Stopped: stopped after step 2 of 15; --resume resumes it"
    assert run_together(2, train, settings, False, {1: (3, "SIGTERM")}) == [stopped] * 2
    assert run_together(3, train, settings, True)[0] == ["depth", "gen"]
    assert_close(alone(settings), settings.out, 1e-5)
    assert [line["step"] for line in log_of(settings.out)] == [*range(1, 16)]


def test_an_error_of_one_ends_the_training_of_all(settings: TrainSettings) -> None:
    said = "the expert of depth gives features that are not finite"
    found = run_together(3, train, settings, False, {1: (2, "nan")})
    assert found[1].startswith(f"InnerVisionError: {said}")
    assert all(each.startswith(f"SharedError: process 1 of 3: {said}") for each in (found[0], found[2]))


def test_processes_with_other_settings_are_refused(settings: TrainSettings) -> None:
    found = run_together(2, train_differently, settings)
    assert all("process 1 of 2 differs from the first one: seed is 1, not 0" in each for each in found)
