"""What is installed: it holds what it needs and no more, and works away from the clone."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/innervision"
MEGABYTES = 18
"""Most that the models of the world may take."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it as `pip install .` would, with what `make setup` has fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "uv", "build", "--wheel", "--offline", "--quiet", "--out-dir", str(folder)]
    built = subprocess.run([*command, str(ROOT)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    [path] = folder.glob("*.whl")
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
