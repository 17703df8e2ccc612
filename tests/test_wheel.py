"""What is published: source and wheel hold what they need and no more, and the wheel works away from the clone."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import innervision

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/innervision"
MEGABYTES = 18
"""Most that the models of the world may take."""


def build(source: Path, out: Path, *options: str) -> None:
    """Build as `python -m build` and `pip install` do, with what `make setup` has fetched."""
    command = [
        sys.executable,
        "-m",
        "uv",
        "build",
        *options,
        "--offline",
        "--quiet",
        "--out-dir",
        str(out),
        str(source),
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that is made from it."""
    folder = tmp_path_factory.mktemp("published")
    build(ROOT, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(published: Path) -> Path:
    [path] = published.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack it to an empty folder, which is all that an installer does with a wheel of Python alone."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in `cwd` with the installed package and the other packages of this environment."""
    path = os.pathsep.join([str(installed), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_it_holds_the_package_and_no_tools(wheel: Path) -> None:
    files = {info.filename: info.file_size for info in zipfile.ZipFile(wheel).infolist()}
    assert {name.split("/")[0].partition("-")[0] for name in files} == {"innervision"}
    expected = {
        f"innervision/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in files if name.startswith("innervision/")} == expected
    models = {name: size for name, size in files.items() if name.startswith("innervision/world/models/")}
    assert {"depth", "seg", "gen", "untrained", "early", "tuned", "distilled"} <= {
        name.split("/")[3] for name in models
    }
    assert sum(models.values()) < MEGABYTES * 1e6


def test_the_source_distribution_holds_the_package_and_what_builds_it(published: Path) -> None:
    [path] = published.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    beside = {name for name in names if not name.startswith("src/innervision/")}
    assert beside == {".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}


def test_its_description_is_shown_by_package_indexes(published: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, published.glob("innervision-*"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_its_version_is_that_of_the_package_and_of_the_citation(wheel: Path) -> None:
    [_, version, *_] = wheel.stem.split("-")
    assert version == innervision.__version__
    assert re.findall(r"^ *version = \{(.*)\},$", (ROOT / "README.md").read_text(), re.MULTILINE) == [version]


def test_what_the_container_copies_is_there_and_can_be_installed(tmp_path: Path) -> None:
    source, lines = tmp_path / "source", (ROOT / "Dockerfile").read_text().splitlines()
    seen = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    source.mkdir()
    for line in lines:
        if line.startswith("COPY "):
            *names, place = line.split()[1:]
            assert set(names) <= seen
            for name in names:
                here = ROOT / name
                if here.is_dir():  # COPY takes what a folder holds
                    target = source / Path(place).relative_to("/source")
                    shutil.copytree(here, target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(here, source)
    build(source, tmp_path / "built", "--wheel")
    [user] = [number for number, line in enumerate(lines) if line.startswith("USER ")]
    assert lines[user].split()[1] != "root"
    assert user < next(number for number, line in enumerate(lines) if line.startswith("ENTRYPOINT "))


def test_its_demo_runs_from_another_folder(installed: Path, tmp_path: Path) -> None:
    """With the fewest scenes and MLLMs: of the others it is enough that their files are there."""
    code = "import innervision; from pathlib import Path; from innervision.world import demo; "
    code += "print(innervision.__file__); demo.RUNS = ('tuned', 'distilled'); "
    code += "demo.demonstrate(Path('shown'), 5, 5, progress=False)"
    done = run(installed, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(installed / "innervision/__init__.py")
    for name in ("curves.png", "layers.png", "tables.txt", "runs/distilled/run.yaml"):
        assert (tmp_path / "shown" / name).is_file()


def test_its_command_writes_scenes(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "-m", "innervision", "data", "scenes", "written", "--train", "2", "--val", "1")
    assert done.returncode == 0, done.stderr
    assert len([*(tmp_path / "written/train2017").iterdir()]) == 2
