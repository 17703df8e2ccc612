"""Files that are whole or not there, and folders that one process writes."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from innervision.errors import InnerVisionError
from innervision.files import atomic_write, locked, remove_half_written
from other_process import holding


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half of the n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_until_the_block_ends_a_reader_sees_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.suffix == ".txt"
    assert path.read_text() == "new"


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InnerVisionError, match="cannot write"), atomic_write(tmp_path / "file" / "a.txt"):
        pass


def test_a_lock_is_held_by_one_process_and_goes_when_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "run/.lock"
    with holding(path) as holder:
        said = f"run is being written by process {holder.pid} on "
        with pytest.raises(InnerVisionError, match=said), locked(path):
            raise AssertionError("two processes hold the lock")
    assert path.exists()  # nobody was left to delete it
    with locked(path):
        assert f"process {os.getpid()} " in path.read_text()
    assert not path.exists()
    assert path.parent.exists()  # it was there before


def test_a_lock_leaves_no_folder_behind_in_which_nothing_was_written(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "new/.lock"):
        raise KeyError
    assert not (tmp_path / "new").exists()
    with locked(tmp_path / "new/.lock"):
        (tmp_path / "new/file").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InnerVisionError, match="cannot write"), locked(tmp_path / "file/.lock"):
        pass


def test_what_a_killed_process_has_left_half_written_is_deleted(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_write(tmp_path / "state.pt") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    writer = multiprocessing.get_context("fork").Process(target=write)
    writer.start()
    writer.join()
    kept = [tmp_path / name for name in ("state.pt", ".hidden", ".my-notes.txt", "a-b.txt")]
    for path in kept:
        path.touch()
    assert len(list(tmp_path.iterdir())) == len(kept) + 1
    remove_half_written(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
