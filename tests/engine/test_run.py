"""The run folder: what its file says, and whose it is."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from innervision.config import ProbeSettings, TrainSettings
from innervision.engine.run import RunFolder
from innervision.errors import InnerVisionError

RECORD = {
    "mllm": {"name": "some/mllm", "revision": "abc", "num_layers": 2},
    "experts": {"depth": {"kind": "depth", "name": "some/expert", "revision": None}},
    "layers": [0, 1, 2],
    "images": {"found": 3, "missing": 0, "files": "sha256:0"},
    "setup": {"dtype": {"mllm": "float32", "experts": "float32", "probes": "float32"}},
}


@pytest.fixture
def settings(tmp_path: Path) -> TrainSettings:
    probe = ProbeSettings(kind="mine", options={"rank": 4})
    return TrainSettings(mllm="some/mllm", images="photos", out=str(tmp_path / "run"), probe=probe, clip=0.5)


@pytest.fixture
def run(settings: TrainSettings) -> RunFolder:
    folder = RunFolder(settings.out)
    folder.write_settings(settings, RECORD)
    return folder


def test_settings_and_record_come_back(run: RunFolder, settings: TrainSettings) -> None:
    assert run.settings() == settings
    assert run.record() == RECORD
    assert yaml.safe_load(run.yaml.read_text())["format"] == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("mllm: x\n", r"has format 1, and this version of InnerVision reads format 2"),
        ("format: 3\nsettings: {}\nrecord: {}\n", "has format 3"),
        ("format: 2\nsettings: {}\n", "lacks the settings or the record"),
        ("format: 2\nsettings: {mllm: x, speed: 3, probe: {}}\nrecord: {}\n", "does not hold the settings of a run"),
        ("format: 2\nsettings: {}\nrecord: {experts: {depth: {name: x}}}\n", "does not say what the experts"),
        ("format: 2\nsettings: {}\nrecord: {experts: [depth]}\n", "does not say what the experts"),
        ("- a\n- b\n", "does not hold the settings of a run"),
        ("a: [unclosed", "cannot be read"),
        ("a: \x00", "cannot be read"),
    ],
)
def test_what_is_no_run_of_this_format_is_refused_by_name(run: RunFolder, content: str, said: str) -> None:
    run.yaml.write_text(content)
    with pytest.raises(InnerVisionError, match=rf"run\.yaml.* {said}"):
        run.settings()


def test_a_run_is_begun_anew_only_while_nothing_of_it_was_saved(run: RunFolder, settings: TrainSettings) -> None:
    run.check_free(settings, resume=False)
    run.state.parent.mkdir()
    run.state.touch()
    with pytest.raises(InnerVisionError, match="holds a run already: add --resume"):
        run.check_free(settings, resume=False)
    run.check_free(settings, resume=True)


def test_a_run_is_resumed_with_its_own_settings(run: RunFolder, settings: TrainSettings) -> None:
    free = replace(settings, device="cpu", workers=0, save_minutes=1, max_bad=0.5, trackers="tensorboard")
    run.check_free(free, resume=True)
    for change in ({"lr": 1e-4}, {"expert_dtype": "bfloat16"}, {"probe_dtype": "float16"}, {"seed": 1}):
        with pytest.raises(InnerVisionError, match=f"begun with other settings: {next(iter(change))} "):
            run.check_free(replace(settings, **change), resume=True)


@pytest.mark.parametrize("key", ["mllm", "experts", "layers", "images"])
def test_a_run_is_resumed_with_its_own_models_and_images(run: RunFolder, key: str) -> None:
    run.check_same(RECORD)
    with pytest.raises(InnerVisionError, match=f"its {key} changed"):
        run.check_same({**RECORD, key: "another"})


def test_a_run_is_resumed_in_its_own_precision(run: RunFolder) -> None:
    setup = {"dtype": {**RECORD["setup"]["dtype"], "probes": "bfloat16"}}
    with pytest.raises(InnerVisionError, match="its dtype changed"):
        run.check_same({**RECORD, "setup": setup})


@pytest.mark.parametrize(
    "change",
    [{"targets": 5}, {"protocol": "foo"}, {"tokens": "some"}, {"dtype": "float61"}, {"epochs": True}, {"lr": "fast"}],
)
def test_settings_of_another_type_are_refused_by_name(run: RunFolder, change: dict[str, object]) -> None:
    content = yaml.safe_load(run.yaml.read_text())
    content["settings"] |= change
    run.yaml.write_text(yaml.safe_dump(content))
    with pytest.raises(InnerVisionError, match=f"{next(iter(change))}="):
        run.settings()


@pytest.mark.parametrize("setup", [None, [], {"dtype": None}, {"dtype": {"mllm": "bfloat16"}}])
def test_the_precision_of_the_mllm_is_that_of_training_where_it_is_known(run: RunFolder, setup: object) -> None:
    run.write_settings(run.settings(), {**RECORD, "setup": setup})
    known = isinstance(setup, dict) and setup["dtype"] is not None
    assert run.trained_settings().dtype == ("bfloat16" if known else None)


def test_a_run_of_before_max_images_was_called_limit_is_read(run: RunFolder) -> None:
    content = yaml.safe_load(run.yaml.read_text())
    content["settings"]["max_images"] = 12
    del content["settings"]["limit"]
    run.yaml.write_text(yaml.safe_dump(content))
    assert run.settings().limit == 12
