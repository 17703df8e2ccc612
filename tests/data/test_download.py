"""Downloads from a server that cuts connections, sends wrong bytes, answers slowly or cannot resume."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from innervision.data import download as module
from innervision.data.download import Remote, download, partial
from innervision.errors import InnerVisionError
from unreliable_server import Server, serve

CONTENT = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "PAUSE", 0.001)
    with serve() as server:
        yield server


@pytest.fixture
def remote(server: Server) -> Remote:
    return server.add("/file.zip", CONTENT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "downloads/file.zip"


def fetch(remote: Remote, path: Path) -> None:
    download(remote, path, progress=False)


def error(remote: Remote, path: Path) -> str:
    with pytest.raises(InnerVisionError) as caught:
        fetch(remote, path)
    assert not path.exists()
    assert str(caught.value).count("\n") <= 1
    return str(caught.value)


def test_a_file_arrives_and_nothing_else_is_left(server: Server, remote: Remote, path: Path) -> None:
    fetch(remote, path)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["file.zip"]
    fetch(remote, path)
    assert len(server.asked) == 1


def test_a_cut_connection_is_gone_on_with_where_it_was_cut(server: Server, remote: Remote, path: Path) -> None:
    server.faults = ["cut:140000", "cut:140000"]
    fetch(remote, path)
    assert path.read_bytes() == CONTENT
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for _, asked in server.asked[1:] if asked]
    assert len(starts) == 2
    assert 0 < starts[0] <= 140_000 < starts[1] <= 280_000


def test_another_call_goes_on_where_one_was_stopped(server: Server, remote: Remote, path: Path) -> None:
    path.parent.mkdir()
    partial(path).write_bytes(CONTENT[:200_000])
    fetch(remote, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [("/file.zip", "bytes=200000-")]


def test_a_killed_process_is_gone_on_with(server: Server, remote: Remote, path: Path) -> None:
    server.faults = ["slow"]
    code = (
        "import sys; from pathlib import Path; from innervision.data.download import *\n"
        f"download({remote!r}, Path({str(path)!r}), progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    began = time.monotonic()
    while not (partial(path).exists() and partial(path).stat().st_size) and time.monotonic() - began < 60:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    have = partial(path).stat().st_size
    assert 0 < have < len(CONTENT)
    fetch(remote, path)
    assert path.read_bytes() == CONTENT
    assert server.asked[-1] == ("/file.zip", f"bytes={have}-")


def test_a_whole_part_is_only_checked(server: Server, remote: Remote, path: Path) -> None:
    path.parent.mkdir()
    partial(path).write_bytes(CONTENT)
    fetch(remote, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == []


@pytest.mark.parametrize("have", [0, 1000, 200_000])
def test_a_server_that_cannot_resume_sends_all_again(server: Server, remote: Remote, path: Path, have: int) -> None:
    server.faults = ["no range, cut:150000", "no range"]
    path.parent.mkdir()
    partial(path).write_bytes(CONTENT[:have])
    fetch(remote, path)
    assert path.read_bytes() == CONTENT


def test_a_server_that_cannot_resume_and_always_cuts_is_given_up(server: Server, remote: Remote, path: Path) -> None:
    server.faults = ["no range, cut:150000"] * 20
    assert "was lost" in error(remote, path)
    assert len(server.asked) == 1 + module.TRIES


def test_an_early_end_without_a_length_is_noticed(server: Server, remote: Remote, path: Path) -> None:
    server.faults = ["quiet"]
    fetch(remote, path)
    assert path.read_bytes() == CONTENT
    assert server.asked[1] == ("/file.zip", "bytes=150000-")


def test_slow_answers_are_waited_for(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.5)
    remote = server.add("/slow.zip", CONTENT[:50_000])  # a second at this pace: longer than the timeout
    server.faults = ["slow"]
    fetch(remote, path)
    assert path.read_bytes() == CONTENT[:50_000]
    assert len(server.asked) == 1


def test_a_server_that_falls_silent_is_asked_again(
    server: Server, remote: Remote, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    server.faults = ["stall"]
    fetch(remote, path)
    assert path.read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_wrong_bytes_are_deleted_and_the_next_try_starts_clean(server: Server, remote: Remote, path: Path) -> None:
    server.files["/file.zip"] = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    message = error(remote, path)
    assert remote.url in message
    assert f"not {remote.sha256}" in message
    assert list(path.parent.iterdir()) == []
    server.files["/file.zip"] = CONTENT
    fetch(remote, path)
    assert path.read_bytes() == CONTENT


def test_wrong_bytes_of_an_earlier_call_are_found_as_well(server: Server, remote: Remote, path: Path) -> None:
    path.parent.mkdir()
    partial(path).write_bytes(bytes(1000))
    assert "SHA-256" in error(remote, path)
    fetch(remote, path)
    assert path.read_bytes() == CONTENT


def test_more_than_there_should_be_is_no_part(server: Server, remote: Remote, path: Path) -> None:
    path.parent.mkdir()
    partial(path).write_bytes(CONTENT + b"more")
    fetch(remote, path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("size", [299_999, 300_001])
def test_a_file_of_another_size_is_refused_before_it_is_fetched(
    server: Server, remote: Remote, path: Path, size: int
) -> None:
    assert f"has 300,000 bytes, not {size:,}" in error(replace(remote, size=size), path)
    assert not partial(path).exists()


def test_a_body_without_end_is_cut_off(server: Server, remote: Remote, path: Path) -> None:
    server.faults = ["quiet"]  # 150,000 bytes, and no length
    assert "has more than 100,000 bytes" in error(replace(remote, size=100_000), path)


def test_another_part_than_was_asked_for_is_refused(server: Server, remote: Remote, path: Path) -> None:
    server.faults = ["cut:200000", "wrong range"]
    assert "another part" in error(remote, path)


def test_a_busy_server_is_asked_again(server: Server, remote: Remote, path: Path) -> None:
    server.faults = ["503", "429"]
    fetch(remote, path)
    assert path.read_bytes() == CONTENT


def test_a_server_that_stays_busy_is_given_up(server: Server, remote: Remote, path: Path) -> None:
    server.faults = ["503"] * 20
    assert "the server answers 503" in error(remote, path)
    assert len(server.asked) == module.TRIES


def test_a_missing_file_is_said_at_once(server: Server, remote: Remote, path: Path) -> None:
    assert "the server answers 404" in error(replace(remote, url=f"{server.url}/gone.zip"), path)
    assert len(server.asked) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/file.zip", "file.zip", "http://"])
def test_a_server_that_is_not_there(server: Server, remote: Remote, path: Path, url: str) -> None:
    assert url in error(replace(remote, url=url), path)


def test_an_empty_file(server: Server, path: Path) -> None:
    fetch(server.add("/empty", b""), path)
    assert path.read_bytes() == b""
