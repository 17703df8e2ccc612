"""The command line as a user meets it."""

import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from innervision import __version__
from innervision.cli import main
from innervision.commands import commands
from innervision.config import ProbeSettings, TrainSettings
from innervision.engine.interrupt import Stopped
from innervision.engine.run import RunFolder
from innervision.errors import InnerVisionError, SharedError
from innervision.world.dataset import write_scenes
from stand_ins import write_noise_images
from tiny_experts import save_tiny_gen
from tiny_mllms import save_tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    save_tiny("llava", root / "llava")
    save_tiny_gen(root / "gen")
    write_noise_images(root / "train", 6, size=(40, 60))
    write_noise_images(root / "val", 6, seed=1, size=(40, 60))
    return root


@pytest.fixture
def words(models: Path, tmp_path: Path) -> list[str]:
    return [
        "train",
        *("--mllm", str(models / "llava")),
        *("--targets", f"gen={models / 'gen'}"),
        *("--images", str(models / "train")),
        *("--out", str(tmp_path / "run")),
        *("--probe.kind", "resampler", "--epochs", "1", "--batch-size", "3", "--workers", "0", "--device", "cpu"),
    ]


def failure(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status of a command, and what it says on standard error."""
    try:
        status = main(words)
    except SystemExit as exit:
        status = int(exit.code or 0)
    return status, capsys.readouterr().err


@pytest.fixture
def run(words: list[str], models: Path, tmp_path: Path) -> str:
    """The folder of a run that was trained and scored."""
    folder = str(tmp_path / "run")
    assert main(words) == 0
    assert main(["evaluate", "similarity", folder, "--images", str(models / "val"), "--workers", "0"]) == 0
    return folder


@pytest.mark.parametrize(
    ("error", "rank", "told"),
    [(InnerVisionError, "1", True), (SharedError, "1", False), (SharedError, "0", True), (Stopped, "3", False)],
)
def test_of_several_processes_the_first_tells_an_error_that_all_know(
    error: type[InnerVisionError],
    rank: str,
    told: bool,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **options: object) -> None:
        raise error("the drive is on fire")

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("innervision.engine.fit.fit", fail)
    status, said = failure(words, capsys)
    assert status == 1
    assert ("error: the drive is on fire" in said) == told


def test_train_evaluate_plot(capsys: pytest.CaptureFixture[str], run: str, tmp_path: Path) -> None:
    assert main(["plot", run, "--out", str(tmp_path / "figure"), "--labels", "mine", "--size", "4x3"]) == 0
    shown = capsys.readouterr().out
    assert "Lines: mine." in " ".join(shown.split())
    assert "gen: 6 images, run of the standard protocol, scored by the standard rule" in shown
    lines = shown[shown.index("gen: 6 images") :].splitlines()
    assert lines[3].split()[0] == "cosine"  # a line for each metric, not for each layer
    assert [line for line in lines if line.startswith("clear  ")]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_a_runs_yaml_is_a_config_that_makes_the_same_probes(words: list[str], models: Path, tmp_path: Path) -> None:
    assert main(words) == 0
    config = tmp_path / "run/run.yaml"
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "again")]) == 0
    first, again = ((tmp_path / run / "probes/gen.safetensors").read_bytes() for run in ("run", "again"))
    assert first == again
    assert main(["train", "--config", str(config), "--resume"]) == 0


def test_a_run_that_was_moved_is_resumed_where_it_is(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    (tmp_path / "run").rename(tmp_path / "moved")
    capsys.readouterr()
    assert main(["train", "--config", str(tmp_path / "moved/run.yaml"), "--resume"]) == 0
    assert str(tmp_path / "moved/probes/gen.safetensors") in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_comparing_a_run_with_itself_shows_no_difference(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["compare", run, run]) == 0
    shown = capsys.readouterr().out
    assert "difference [low, high]" in shown
    assert "0.000 [0.000, 0.000]" in shown
    assert "above 0 the first has the larger score" in shown


def test_run_yaml_says_what_the_run_was_made_with(words: list[str], tmp_path: Path) -> None:
    main([*words, "--max-bad=0.2"])
    content = yaml.safe_load((tmp_path / "run/run.yaml").read_text())
    assert content["format"] == 2
    assert content["settings"]["max_bad"] == 0.2
    assert content["record"]["layers"] == [-1, 0, 1, 2, 3, 4]
    assert content["record"]["mllm"]["revision"].startswith("sha256:")
    assert {"torch", "transformers", "innervision"} <= content["record"]["setup"]["versions"].keys()


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        (["--images", "no/such/folder"], 1, "no such file or folder"),
        (["--mllm", "no-such/model"], 1, "no-such/model"),
        (["--targets", "depth=no-such/model"], 1, "no-such/model"),
        (["--targets", "deep"], 1, "there is no target 'deep'"),
        (["--layers", "99"], 1, "there is no layer 99"),
        (["--tokens", "some"], 2, "tokens"),
        (["--epochs", "many"], 2, "epochs"),
        (["--epochs", "0"], 2, "epochs must be above 0"),
        (["--probe.kind", "mlp"], 1, "known are blind, linear, pooled, resampler, ridge"),
        (["--no-such-option"], 2, "no_such_option"),
        (["--epoch", "3"], 2, "--epoch"),
        (["--resume"], 1, "no run to resume"),
    ],
)
def test_errors_say_what_is_wrong_without_a_traceback(
    words: list[str], change: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, text = failure([*words, *change], capsys)
    assert found == status
    assert said in text
    assert "Traceback" not in text
    assert text.rpartition("innervision: error: ")[2].count("\n") <= 2


def test_all_layers_are_shown_on_request(run: str, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    words = ["evaluate", "similarity", run, "--images", str(models / "val"), "--workers", "0"]
    assert main([*words, "--table"]) == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert shown[3:11] == ["vision", "0", "1", "2", "3", "4", "avg", "mean"]
    assert main(["show", run]) == 0
    assert "vision" not in [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "similarity", "no/run", "--images", "i"], "no/run does not exist"),
        (["evaluate", "gen", "no/run", "--data", "i"], "no/run does not exist"),
        (["evaluate", "gen", "RUN", "--data", "no/data"], "no such file or folder: no/data"),
        (["evaluate", "seg", "RUN", "--data", ".", "--batch-size", "0"], "batch_size must be above 0"),
        (["evaluate", "similarity", "RUN", "--images", ".", "--name", "a/b"], "cannot be the name of a table"),
        (["plot", "RUN", "no/run", "--out", "a.png"], "no/run does not exist"),
        (["compare", "RUN", "no/run"], "no/run does not exist"),
        (["plot", "RUN", "--out", "a.png", "--size", "4"], "size='4' is not WIDTHxHEIGHT in inches"),
        (["show", "no/run"], "no/run does not exist"),
        (["picture", "RUN", "--image", "no/image"], "there is no image no/image"),
        (
            ["picture", "RUN", "--image", "RUN/run.yaml", "--targets", "deep"],
            "no target 'deep', only: dino",
        ),
        (["picture", "RUN", "--image", "RUN/run.yaml"], "nothing can be drawn of dino"),
        (["push", "RUN", "repo", "--license", "mit"], "'repo' is no repository on the Hub"),
        (["push", "RUN", "me/repo"], "license"),
        (["train", "--mllm", "m", "--images", "no/images", "--out", "o"], "no such file or folder: no/images"),
        (["train", "--mllm", "m", "--images", ".", "--out", "o", "--targets", "deep"], "there is no target 'deep'"),
        (["train", "--mllm", "m", "--images", ".", "--out", "o", "--probe.kind", "mlp"], "there is no probe 'mlp'"),
    ],
)
def test_what_needs_no_model_is_told_without_torch(words: list[str], said: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "RUN")
    experts = {"dino": {"kind": "backbone"}}
    run.write_settings(TrainSettings(mllm="m", images="i", out="o", targets="dino:backbone=x"), {"experts": experts})
    code = "import sys\nfrom innervision.cli import main\nstatus = main(sys.argv[1:])\n"
    code += "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\nsys.exit(status)"
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("innervision: error: "), done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_picture_shows_each_layer_of_any_photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path / "scenes", train=8, val=2, size=64, progress=False)
    out, targets = str(tmp_path / "run"), "depth=world/depth,seg=world/seg"
    words = ["--targets", targets, "--images", str(tmp_path / "scenes/train2017"), "--layers", "0,8", "--device", "cpu"]
    assert main(["train", "--mllm", "world/tuned", "--out", out, *words, "--workers", "0"]) == 0
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (90, 60), (200, 30, 60)).save("photo.jpg")
    assert main(["picture", out, "--image", "photo.jpg", "--targets", "seg", "--device", "cpu"]) == 0
    assert main(["picture", out, "--image", "photo.jpg", "--out", "both.svg", "--device", "cpu"]) == 0
    drawn = np.asarray(Image.open("photo-layers.png").convert("RGB")).astype(int)
    assert (np.abs(drawn - np.array([200, 30, 60])).max(-1) < 12).mean() > 0.01  # the photograph itself
    assert "<svg" in Path("both.svg").read_text()[:1000]


def test_debug_shows_the_traceback(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, text = failure([*words, "--images", "no/such/folder", "--debug"], capsys)
    assert status == 1
    assert "Traceback" in text


def test_an_empty_folder_is_refused(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    status, text = failure([*words, "--images", str(tmp_path / "empty")], capsys)
    assert status == 1
    assert "no images in" in text


class Calls(list):
    """What a stand-in for a function of the engine was called with: (positional, by name)."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.append((given, named))
        return {}


@pytest.fixture
def fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The calls of `fit`, which then trains nothing, in a folder that holds the images `i`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "i").mkdir()
    calls = Calls()
    fit = ModuleType("fit")
    fit.fit = calls  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "innervision.engine.fit", fit)
    return calls


TRAIN = ["train", "--mllm", "m", "--images", "i", "--out", "o"]


def test_options_can_be_typed_with_hyphens_or_underscores(fitted: Calls) -> None:
    assert main([*TRAIN, "--max-bad", "0.2", "--batch_size=3", "--probe.dim-head", "8"]) == 0
    [((settings,), named)] = fitted
    expected = TrainSettings(mllm="m", images="i", out="o", max_bad=0.2, batch_size=3, probe=ProbeSettings(dim_head=8))
    assert settings == expected
    assert named == {"resume": False, "trust_remote_code": False}


def test_trust_and_resume_are_decided_by_the_call_alone(fitted: Calls) -> None:
    assert main([*TRAIN, "--trust-remote-code", "--resume"]) == 0
    [((settings,), named)] = fitted
    assert settings == TrainSettings(mllm="m", images="i", out="o")
    assert named == {"resume": True, "trust_remote_code": True}


def test_settings_of_foreign_probes_pass_through(
    fitted: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("innervision.commands.require_offered", Calls())
    (tmp_path / "a.yaml").write_text("probe: {kind: mine, options: {width: 3, flag: true, share: 2.0, names: [a, b]}}")
    assert main([*TRAIN, "--config", str(tmp_path / "a.yaml"), "--probe.options.my_rate", "0.5"]) == 0
    [((settings,), _)] = fitted
    assert settings.probe.kind == "mine"
    expected = {"width": 3, "flag": True, "share": 2.0, "names": ["a", "b"], "my_rate": 0.5}
    assert settings.probe.options == expected
    assert {name: type(value) for name, value in settings.probe.options.items()} == {
        name: type(value) for name, value in expected.items()
    }


@pytest.mark.parametrize(
    "content",
    [
        "class_path: foreign.X",
        "probe: {class_path: foreign.X}",
        "probe: foreign.X",
        "probe: {options: {class_path: foreign.X}}",
        "probe: {options: {x: {class_path: foreign.X, init_args: {}}}}",
        "probe: {options: {x: [{class_path: foreign.X}]}}",
        "clip: {class_path: foreign.X}",
    ],
)
def test_no_file_makes_a_module_run(
    content: str, fitted: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign.py").write_text("class X: pass")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a.yaml").write_text(content)
    main([*TRAIN, "--config", str(tmp_path / "a.yaml")])
    assert "foreign" not in sys.modules


def test_options_change_the_settings_of_files_and_those_the_settings_of_presets(fitted: Calls, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("epochs: 3\nlr: 0.5\ntargets: depth")
    assert main([*TRAIN, "--lr", "0.25", "--config", str(tmp_path / "a.yaml"), "--preset=paper-seg"]) == 0
    [((settings,), _)] = fitted
    assert (settings.protocol, settings.layers) == ("paper", "decoder")  # of the preset
    assert (settings.epochs, settings.targets) == (3, "depth")  # of the file
    assert settings.lr == 0.25


def test_a_run_yaml_gives_its_settings_and_its_own_folder(fitted: Calls, tmp_path: Path) -> None:
    settings = TrainSettings(mllm="m", images="i", out="elsewhere", epochs=5, probe=ProbeSettings(heads=2))
    content = {"format": 2, "settings": asdict(settings), "record": {"mllm": {"name": "m"}}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--resume"]) == 0
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--out", "new"]) == 0
    assert [call[0][0] for call in fitted] == [replace(settings, out=str(tmp_path)), replace(settings, out="new")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("epoch: 3", "epoch"),
        ("epochs: many", "epochs"),
        ("epochs: 0", "epochs must be above 0"),
        ("probe: {width: 3}", "width"),
        ("resume: true", "resume"),
        ("debug: true", "debug"),
        ("config: a.yaml", "config"),
        ("preset: paper-depth", "preset"),
        ("record: {}", "record"),
        ("trust_remote_code: true", "trust_remote_code"),
        ("{format: 2, settings: {trust_remote_code: true}, record: {}}", "trust_remote_code"),
        ("{format: 2, settings: {epochs: 3}, record: {}, resume: true}", "resume"),
        ("{format: 2, settings: [epochs], record: {}}", "a mapping of names to values is needed"),
        ("- epochs", "a mapping of names to values is needed"),
        ("", "a mapping of names to values is needed"),
        ("{", "cannot be read"),
    ],
)
def test_a_file_that_holds_anything_but_settings_is_refused_by_name(
    content: str, said: str, fitted: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(content)
    status, text = failure([*TRAIN, "--config", str(tmp_path / "config.yaml")], capsys)
    assert status == 2
    assert said in text
    assert text.startswith("innervision: error: ")
    assert text.count("\n") == 1
    assert not fitted


OTHER_PACKAGE = """
from dataclasses import dataclass
from innervision.config import TaskSettings

@dataclass(kw_only=True)
class CountSettings(TaskSettings):
    most: int = 9
    \"\"\"The largest number that is counted to.\"\"\"

class Count:
    settings_class = CountSettings
"""


def test_a_task_of_another_package_brings_settings_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "counting.py").write_text(OTHER_PACKAGE)
    (tmp_path / "counting-1.dist-info").mkdir()
    (tmp_path / "counting-1.dist-info/METADATA").write_text("Name: counting\nVersion: 1\n")
    (tmp_path / "counting-1.dist-info/entry_points.txt").write_text("[innervision.tasks]\ncount = counting:Count\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    calls, evaluate = Calls(), ModuleType("evaluate")
    evaluate.evaluate_task = calls  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "innervision.engine.evaluate", evaluate)
    monkeypatch.setattr("innervision.commands._show_scores", Calls())

    run = RunFolder(tmp_path / "run")
    run.write_settings(TrainSettings(mllm="m", images="i", out="o"), {})
    words = ["--data", "d", "--most", "4", "--batch-size", "1", "--overwrite"]
    assert main(["evaluate", "count", str(run.path), *words]) == 0
    [((path, task, settings), named)] = calls
    assert (path, task, type(settings).__name__) == (run.path, "count", "CountSettings")
    assert (settings.data, settings.most, settings.batch_size) == ("d", 4, 1)
    assert named == {"name": None, "overwrite": True, "trust_remote_code": False}
    with pytest.raises(SystemExit):
        main(["evaluate", "count", "--help"])
    assert "The largest number that is counted to." in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_command_has_help_with_hyphens_as_they_are_typed(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main([*command.split(), "--help"])
    shown = capsys.readouterr().out
    assert exit.value.code == 0
    assert f"usage: innervision {command}" in shown
    assert not re.findall(r"--[\w.-]*_[\w.-]*", shown)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a command"),
        (["evaluate"], "name a command; there are: evaluate similarity"),
        (["evaluate", "depths", "runs/a"], "there is no command 'evaluate depths'"),
        (["trian", "--mllm", "m"], "there is no command 'trian'"),
        (["plot", "--out", "a.png"], "runs"),
        (["train", "--preset", "paper"], "paper-depth"),
        (["train", "--config"], "--config"),
    ],
)
def test_words_that_are_no_command_are_wrong_usage(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = failure(words, capsys)
    assert status == 2
    assert said in text
    assert text.count("\n") == 1


def test_names_between_commas_may_have_blanks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("innervision.data.benchmarks.download_coco", lambda out, *names: asked.extend(names) or [])
    lists = ["--split", "train2017, val2017", "--annotations", "captions ,panoptic"]
    assert main(["data", "coco", str(tmp_path), *lists]) == 0
    assert asked == [["train2017", "val2017"], ["captions", "panoptic"], None]


def test_the_list_of_commands_names_every_task_and_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main(["evaluate", "--help"]) == main(["--version"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {command} " in shown for command in commands())
    assert __version__ in shown


@pytest.mark.parametrize("words", [["--help"], ["evaluate", "--help"], ["train", "--help"]])
def test_help_needs_no_torch(words: list[str]) -> None:
    """`--help` has to answer in under a second, which importing torch alone takes."""
    code = f"import sys\nfrom innervision.cli import main\ntry: main({words})\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'transformers', 'pandas', 'matplotlib'} & set(sys.modules)"
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.monotonic() - began < 10  # a generous bound for a busy machine; the modules are what counts
