"""Downloads from a server that cuts connections, sends wrong bytes or cannot resume."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

from innervision.data.download import Remote, download, partial
from innervision.errors import InnerVisionError
from unreliable_server import Server, serve

CONTENT = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # as much is lost at most when a connection is cut
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))
    with serve() as server:
        yield server


@pytest.fixture
def remote(server: Server) -> Remote:
    return server.add("/file.zip", CONTENT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "downloads/file.zip"


def error(remote: Remote, path: Path) -> str:
    with pytest.raises(InnerVisionError) as caught:
        download(remote, path)
    assert not path.exists()
    assert str(caught.value).count("\n") <= 1
    return str(caught.value)


def test_a_file_arrives_and_nothing_else_is_left(server: Server, remote: Remote, path: Path) -> None:
    download(remote, path)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["file.zip"]
    download(remote, path)
    assert len(server.asked) == 1


def test_a_cut_connection_is_resumed_where_it_was_cut(server: Server, remote: Remote, path: Path) -> None:
    server.faults = ["cut:140000", "cut:140000"]
    download(remote, path)
    assert path.read_bytes() == CONTENT
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for _, asked in server.asked[1:] if asked]
    assert len(starts) == 2
    assert 0 < starts[0] <= 140_000 < starts[1] <= 280_000


def test_a_server_that_always_cuts_is_given_up_and_the_next_call_resumes(
    server: Server, remote: Remote, path: Path
) -> None:
    server.faults = ["cut:200000", *["cut:0"] * 20]
    message = error(remote, path)
    assert remote.url in message
    assert "resumes after 200,000 of 300,000 bytes" in message
    server.faults = []
    download(remote, path)
    assert path.read_bytes() == CONTENT
    assert server.asked[-1] == ("/file.zip", "bytes=200000-")


def test_a_killed_process_is_resumed(server: Server, remote: Remote, path: Path) -> None:
    server.files["/file.zip"] = content = CONTENT * 200  # 60 MB: more than what is written at a time
    remote = server.add("/file.zip", content)
    server.faults = ["slow:1000000"]
    code = (
        "import sys; from pathlib import Path; from innervision.data.download import *\n"
        f"download({remote!r}, Path({str(path)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "HF_HUB_OFFLINE": "0"})
    began = time.monotonic()
    while not (partial(path).exists() and partial(path).stat().st_size) and time.monotonic() - began < 60:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    have = partial(path).stat().st_size
    assert 0 < have < len(content)
    download(remote, path)
    assert path.read_bytes() == content
    assert server.asked[-1] == ("/file.zip", f"bytes={have}-")


def test_a_whole_part_is_only_checked(server: Server, remote: Remote, path: Path) -> None:
    path.parent.mkdir()
    partial(path).write_bytes(CONTENT)
    download(remote, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == []


@pytest.mark.parametrize("have", [0, 1000, 200_000])
def test_a_server_that_cannot_resume_sends_all_again(server: Server, remote: Remote, path: Path, have: int) -> None:
    server.faults = ["no range, cut:150000", "no range"]
    path.parent.mkdir()
    partial(path).write_bytes(CONTENT[:have])
    download(remote, path)
    assert path.read_bytes() == CONTENT


def test_wrong_bytes_are_deleted_and_the_next_try_starts_clean(server: Server, remote: Remote, path: Path) -> None:
    server.files["/file.zip"] = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    message = error(remote, path)
    assert remote.url in message
    assert f"not {remote.sha256}" in message
    assert list(path.parent.iterdir()) == []
    server.files["/file.zip"] = CONTENT
    download(remote, path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("before", [bytes(1000), CONTENT + b"more"])
def test_what_an_earlier_call_left_of_another_file_is_found_and_deleted(
    server: Server, remote: Remote, path: Path, before: bytes
) -> None:
    path.parent.mkdir()
    partial(path).write_bytes(before)
    assert "not the file it should be" in error(remote, path)
    download(remote, path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("size", [299_999, 300_001])
def test_a_file_of_another_size_is_deleted(server: Server, remote: Remote, path: Path, size: int) -> None:
    message = error(replace(remote, size=size), path)
    assert "it is of 300,000 bytes" in message
    assert f"{size:,} bytes" in message
    assert not partial(path).exists()


def test_a_missing_file_is_said_at_once(server: Server, remote: Remote, path: Path) -> None:
    assert "404" in error(replace(remote, url=f"{server.url}/gone.zip"), path)
    assert len(server.asked) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/file.zip", "file.zip", "http://"])
def test_a_server_that_is_not_there(server: Server, remote: Remote, path: Path, url: str) -> None:
    assert url in error(replace(remote, url=url), path)
