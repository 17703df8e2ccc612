"""Commands and Python of the README and the docs: understood by the real parser, and run where what they need is here.

They run as they are written, in a folder where the models and data that they name stand for those of the Hub and of the
benchmarks: `llava-hf/llava-1.5-7b-hf` is a folder with a tiny MLLM, `coco` one with scenes.
"""

import importlib.util
import re
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import chdir
from glob import glob
from pathlib import Path

import pytest
import yaml

from doc_pages import ROOT, Command, blocks, commands, inline_commands
from hub_server import serve_hub, stand_in_for_the_hub
from innervision import cli
from innervision.checkpoints.identity import MODELS
from innervision.commands import GROUPS
from innervision.hub.push import push
from innervision.world.dataset import write_scenes
from tiny_experts import save_tiny_backbone
from tiny_mllms import save_tiny

MLLMS = ["llava-hf/llava-1.5-7b-hf", "HuggingFaceTB/SmolVLM-256M-Instruct", "MODEL"]
"""MLLMs that the docs name; here all are the same tiny one."""
EXPERTS = {
    "depth-anything/Depth-Anything-V2-Large-hf": "depth",
    "shi-labs/oneformer_coco_swin_large": "seg",
    "sd2-community/stable-diffusion-2-1-unclip": "gen",
}
"""Expert that a run takes by default -> that of the embedded world."""
DATA = {
    "coco": "scenes",
    "data/coco": "scenes",
    "data/scenes": "scenes",
    "da2k/DA-2K": "scenes/da2k",
    "data/DA-2K": "scenes/da2k",
    "photos/train": "scenes/train2017",
    "photos/val-b": "scenes/train2017",
}
"""Folder in the docs -> part of the scenes."""
NOT_HERE = {
    r"data (coco|da2k) ": "benchmarks are fetched from their servers",
    r"import ": "checkpoints of the original are on the Hub",
    r".*--preset ": "its MLLM and its training of hours are not here",
    r"evaluate gen (?!.*--features gen=)": "the weights of Inception and DINOv2 are fetched",
    r".*pooled=": "of a package that the page shows: see test_own_package",
    r".*settings\.yaml": "a file of the reader's own",
    r"data scenes ": "hundreds of scenes, see tests/world",
    r"report .*--data": "draws images of many layers, which takes its time: see tests/engine/test_pictures.py",
    r"demo$": "minutes, see tests/world/test_demo.py",
}
"""Start of a command -> why it is parsed and not run."""
SEVERAL = {"torchrun", "srun"}
"""Programs that start several processes on devices that are not here."""


def run_here(command: Command) -> bool:
    words = command.innervision
    if words is None or command.words[0] in SEVERAL:
        return False
    return not any(re.match(start, " ".join(words)) for start in NOT_HERE)


# --- understood ---------------------------------------------------------------------------------------------


@pytest.fixture
def understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[object]]:
    """Commands do nothing but note what they were called with, in a folder with the files that they read."""
    called: list[object] = []
    known = {
        name: command._replace(run=lambda *values: called.append(values)) for name, command in cli.commands().items()
    }
    monkeypatch.setattr(cli, "commands", lambda: known)
    run = {"format": 2, "settings": {"mllm": "a/b", "images": "photos", "out": "runs/a"}, "record": {}}
    for name in ("a", "llava"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.yaml").write_text(yaml.safe_dump(run))
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(run["settings"]))
    with chdir(tmp_path):
        yield called


def test_every_command_has_words_and_options_that_the_parser_knows(
    understood: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    ours = [command for command in commands() if command.innervision is not None]
    assert len(ours) > 40
    for number, command in enumerate(ours, 1):
        assert cli.main(command.innervision) == 0, f"{command}: {capsys.readouterr().err}"
        assert len(understood) == number


def test_options_in_running_text_are_those_of_their_commands() -> None:
    known = cli.commands()
    for command in inline_commands():
        words = command.innervision
        if words is None or "nearest" in words:  # the task of the page's own package
            continue
        name = next((name for size in (2, 1) if (name := " ".join(words[:size])) in known), None)
        options = {word for word in words if word.startswith("--")} - {"--help"}
        assert name or (words[0] in {*GROUPS, "--help"} and not options), str(command)
        if name:
            parser, _ = cli._parser(name, known[name])
            assert options <= {text for action in parser._actions for text in action.option_strings}, str(command)


def test_other_programs_are_asked_for_what_there_is() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in [*commands(), *inline_commands()]:
        match command.words:
            case ["pip", "install", what, *_]:
                asked = re.fullmatch(r"\.(?:\[(.*)\])?", what)
                assert what == "num2words" or asked, str(command)
                assert not asked or not asked[1] or set(asked[1].split(",")) <= extras.keys(), str(command)
            case ["make", target]:
                assert target in targets, str(command)
            case ["python", "-m", module, *_]:
                assert importlib.util.find_spec(module), str(command)
            case ["docker", *_]:
                assert (ROOT / "Dockerfile").is_file()
            case _:
                assert command.innervision is not None, str(command)


def test_a_reason_not_to_run_a_command_belongs_to_one() -> None:
    ours = [" ".join(command.innervision) for command in commands() if command.innervision is not None]
    for start in NOT_HERE:
        assert any(re.match(start, words) for words in ours), start


# --- run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all that the docs name, in which the README's first real use was done."""
    box = tmp_path_factory.mktemp("docs")
    write_scenes(box / "scenes", train=6, val=5, progress=False)
    save_tiny("llava", box / "mllm")
    experts = {name: MODELS / model for name, model in EXPERTS.items()}
    for name, folder in (dict.fromkeys(MLLMS, "mllm") | experts | DATA).items():
        (box / name).parent.mkdir(parents=True, exist_ok=True)
        (box / name).symlink_to(box / folder)
    save_tiny_backbone(box / "facebook/dinov2-small")
    shutil.copytree(box / "scenes/val2017", box / "photos/val")
    photograph = min((box / "photos/val").iterdir())
    shutil.copy(photograph, box / "photo.jpg")
    photograph.rename(box / "photos/val/0000.png")
    with chdir(box):
        run_commands("README.md")
        shutil.copytree("runs/llava", "scored")
        yield box


def provide_runs() -> None:
    """Let every run that the docs speak of be the one of the README; b has another setting, and a-s1 another seed.

    All but one are without the scores by class, whose intervals take longest.
    """
    shutil.rmtree("runs")
    shutil.copytree("scored", "runs/a")
    for name in ("b", "llava", "llava-random", "distilled", "tuned", "untrained", "a-s0", "a-s1"):
        shutil.copytree("scored", f"runs/{name}", ignore=shutil.ignore_patterns("seg.parquet", "seg.json", "seg.csv"))
    for name, own, other in (("b", "limit: null", "limit: 6"), ("a-s1", "seed: 0", "seed: 1")):
        settings = Path("runs", name, "run.yaml")
        assert own in settings.read_text()
        settings.write_text(settings.read_text().replace(own, other))


def run_commands(page: str) -> None:
    """Run the commands of a page in their order, but for those that an earlier page has, too."""
    first = {" ".join(command.words): command for command in reversed(commands())}
    for command in commands():
        if command.page != page or not run_here(command) or command != first[" ".join(command.words)]:
            continue
        words = [each for word in command.innervision or () for each in (sorted(glob(word)) if "*" in word else [word])]
        if words[0] == "train" and "--out" in words:
            shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
        if words[0] in ("train", "evaluate"):
            words += ["--workers", "0", "--device", "cpu"]  # the same results, sooner
        assert cli.main(words) == 0, str(command)


def test_the_first_real_use_of_the_readme_ends_with_a_figure_and_a_page(box: Path) -> None:
    assert (box / "llava.png").stat().st_size > 10_000
    assert "</html>" in (box / "llava.html").read_text()
    assert {path.stem for path in (box / "scored/scores").glob("*.parquet")} == {"similarity", "depth", "seg"}


@pytest.mark.parametrize("page", sorted({command.page for command in commands() if run_here(command)} - {"README.md"}))
def test_commands_of_a_page_run(page: str, box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provide_runs()
    with serve_hub() as server:
        stand_in_for_the_hub(server, monkeypatch, box)
        if page == "docs/runs.md":  # speaks of another one's repository
            push("runs/b", "USER/OTHER", licence="mit")
            other = server.repositories["USER/OTHER"]
            other.tags["v2"] = other.find("main")
        run_commands(page)


@pytest.mark.parametrize("page", sorted({block.page for block in blocks("python")}))
def test_python_of_a_page_runs(page: str, box: Path) -> None:
    provide_runs()
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks("python"):
        if block.page == page:
            exec(compile(block.text, str(block), "exec"), names)
