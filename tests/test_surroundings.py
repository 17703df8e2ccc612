"""What a command meets beside its files: encodings, pipes, notebooks, processes without a network."""

import ast
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled

import innervision as innervision_package
from innervision.checkpoints import hub
from innervision.checkpoints.hub import cached_without_network
from innervision.checkpoints.loading import loading
from innervision.cli import main


def innervision(*words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "innervision", *words]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, timeout=120)


@pytest.mark.parametrize("encoding", ["cp932", "latin-1", "ascii"])
def test_help_is_shown_in_any_encoding(encoding: str) -> None:
    done = innervision("train", "--help", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert b"--mllm" in done.stdout


SOURCES = Path(innervision_package.__file__).parent


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCES)))
def test_files_are_utf_8_whatever_the_locale(path: Path) -> None:
    assert not [*of_locale(path.read_text(encoding="utf-8"))]


def test_files_in_the_encoding_of_the_locale_are_noticed() -> None:
    source = """\
path.write_text(text)
path.write_text(text, encoding="utf-8")
path.read_text()
path.open("a")
path.open("rb")
open(path, mode="w")
Image.open(path)
os.fdopen(number, "w")
read_text(path)
"""
    assert [*of_locale(source)] == [1, 3, 4, 6, 8]


def of_locale(source: str) -> Iterator[int]:
    """Give the lines that read or write text in the encoding of the locale."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        words = {keyword.arg: keyword.value for keyword in call.keywords}
        values = [each.value for each in [*call.args, words.get("mode")] if isinstance(each, ast.Constant)]
        modes = [value for value in values if isinstance(value, str) and value and {*value} <= {*"rwax+t"}]
        text = name in ("write_text", "read_text") and isinstance(call.func, ast.Attribute)
        if "encoding" not in words and (text or (name in ("open", "fdopen") and modes)):
            yield call.lineno


def test_a_reader_that_has_enough_ends_a_command_quietly() -> None:
    command = f"{sys.executable} -m innervision train --help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=120)
    assert done.stderr == b""


def test_the_drawing_of_a_notebook_is_not_inherited(tmp_path: Path) -> None:
    done = innervision("plot", str(tmp_path / "gone"), "--out", "a.png", MPLBACKEND="module://no_such.backend")
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"does not exist" in done.stderr


def test_without_a_network_the_cache_is_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        hub._reachable.cache_clear()
        with cached_without_network("org/model"):  # nobody listens there
            assert constants.HF_HUB_OFFLINE
        assert not constants.HF_HUB_OFFLINE
        server.listen()
        hub._reachable.cache_clear()
        with cached_without_network("org/model"):
            assert not constants.HF_HUB_OFFLINE
    hub._reachable.cache_clear()


@pytest.mark.parametrize("name", ["./gone", "../gone/model", "/gone", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes((Path(__file__).parents[1] / "docs/images/demo-curves.png").read_bytes())
    assert main(["train", "--mllm", name, "--images", "a.png", "--out", "run", "--targets", "gen"]) == 1
    assert f"there is no file or folder {name}" in capsys.readouterr().err


def test_bars_of_downloads_stay_on_while_the_librarys_own_are_off() -> None:
    with loading("MLLM", "a/b"):
        assert not are_progress_bars_disabled()
        assert not transformers.utils.logging.is_progress_bar_enabled()
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_what_is_loaded_is_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys, innervision.commands as commands\n"
        "from innervision.cli import main\n"
        "def tell(text):\n"
        "    print(text)\n"
        "    sys.exit('torch' in sys.modules)\n"
        "commands.tell = tell\n"
        f"main(['train', '--mllm', 'some/model', '--targets', 'gen', '--images', {str(tmp_path)!r}, '--out', 'run'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, text=True)
    assert done.returncode == 0
    assert done.stdout == "loading some/model and the experts gen\n"
