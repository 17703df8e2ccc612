"""The command line as a user meets it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from innervision.cli import main
from stand_ins import write_noise_images
from tiny_experts import save_tiny_gen
from tiny_mllms import save_tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    save_tiny("llava", root / "llava")
    save_tiny_gen(root / "gen")
    write_noise_images(root / "train", 6, size=(40, 60))
    write_noise_images(root / "val", 4, seed=1, size=(40, 60))
    return root


@pytest.fixture
def words(models: Path, tmp_path: Path) -> list[str]:
    return [
        "train",
        *("--mllm", str(models / "llava")),
        *("--targets", f"gen={models / 'gen'}"),
        *("--images", str(models / "train")),
        *("--out", str(tmp_path / "run")),
        *("--epochs", "1", "--batch-size", "3", "--workers", "0", "--device", "cpu"),
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


def test_train_evaluate_plot(capsys: pytest.CaptureFixture[str], run: str, tmp_path: Path) -> None:
    assert main(["plot", run, "--out", str(tmp_path / "figure.png")]) == 0
    shown = capsys.readouterr().out
    assert "gen: 4 images, standard protocol" in shown
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
    assert shown.count("0.000 [0.000, 0.000]") == 4 * 7  # metrics; vision, 0, four layers, their average
    assert "above 0 the first has the larger score" in shown


def test_run_yaml_says_what_the_run_was_made_with(words: list[str], tmp_path: Path) -> None:
    main([*words, "--max-bad=0.2"])
    content = yaml.safe_load((tmp_path / "run/run.yaml").read_text())
    assert content["max_bad"] == 0.2
    assert content["record"]["layers"] == [-1, 0, 1, 2, 3, 4]
    assert content["record"]["mllm"]["revision"].startswith("sha256:")
    assert {"torch", "transformers", "innervision"} <= content["record"]["versions"].keys()


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
        (["--probe.kind", "mlp"], 1, "known are blind, linear, resampler"),
        (["--no-such-option"], 2, "no_such_option"),
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


def test_debug_shows_the_traceback(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, text = failure([*words, "--images", "no/such/folder", "--debug"], capsys)
    assert status == 1
    assert "Traceback" in text


@pytest.mark.parametrize(("content", "said"), [("epoch: 3\n", "epoch"), ("epochs: many\n", "epochs"), ("{", "")])
def test_a_wrong_setting_in_yaml_is_named(
    words: list[str], content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(content)
    status, text = failure([*words, "--config", str(tmp_path / "config.yaml")], capsys)
    assert status == 2
    assert said in text
    assert "Traceback" not in text


def test_an_empty_folder_is_refused(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    status, text = failure([*words, "--images", str(tmp_path / "empty")], capsys)
    assert status == 1
    assert "no images in" in text


def test_help_needs_no_torch() -> None:
    """`--help` has to answer in under a second, which importing torch alone takes."""
    code = "import sys\nfrom innervision.cli import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'transformers', 'pandas', 'matplotlib'} & set(sys.modules)"
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.monotonic() - began < 10  # a generous bound for a busy machine; the modules are what counts
