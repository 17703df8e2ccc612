"""Archives that would do harm, are broken, or were unpacked half."""

import io
import shutil
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import pytest

from innervision.data import archive as module
from innervision.data.archive import check_space, unpack
from innervision.errors import InnerVisionError

FILES = {"a/1.txt": b"one", "a/b/2.txt": b"two" * 1000, "ab/3.txt": b"three", "4.txt": b"four", "a/empty": b""}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def pack(path: Path, files: dict[str | ZipInfo, bytes]) -> Path:
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error(archive: Path, out: Path, member: str = "") -> str:
    with pytest.raises(InnerVisionError) as caught:
        unpack(archive, member, out)
    assert not out.exists()
    assert str(caught.value).count("\n") <= 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ("", FILES),
        ("a", {"1.txt": FILES["a/1.txt"], "b/2.txt": FILES["a/b/2.txt"], "empty": b""}),
        ("a/b", {"2.txt": FILES["a/b/2.txt"]}),
    ],
)
def test_a_folder_of_an_archive(tmp_path: Path, out: Path, member: str, expected: dict[str, bytes]) -> None:
    unpack(pack(tmp_path / "x.zip", FILES), member, out)
    assert contents(out) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.zip"]


def test_a_file_of_an_archive(tmp_path: Path, out: Path) -> None:
    unpack(pack(tmp_path / "x.zip", FILES), "a/b/2.txt", out)
    assert out.read_bytes() == FILES["a/b/2.txt"]


def test_an_archive_in_an_archive(tmp_path: Path, out: Path) -> None:
    pack(tmp_path / "inner.zip", FILES)
    outer = pack(tmp_path / "outer.zip", {"x/inner.zip": (tmp_path / "inner.zip").read_bytes()})
    with ZipFile(outer) as opened, opened.open("x/inner.zip") as inner:
        unpack(inner, "a", out)
    assert contents(out).keys() == {"1.txt", "b/2.txt", "empty"}


def test_what_is_there_is_left_alone(tmp_path: Path, out: Path) -> None:
    out.mkdir()
    unpack(tmp_path / "no.zip", "", out)
    assert contents(out) == {}


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "a\\..\\..\\x", "C:/x", "a/..", "//x"])
def test_a_name_that_leads_out_is_refused_before_anything_is_written(tmp_path: Path, out: Path, name: str) -> None:
    (tmp_path / "zip").mkdir()
    path = pack(tmp_path / "zip/x.zip", {"a/1.txt": b"one", name: b"evil"})
    assert "leads out of the folder" in error(path, out)
    assert [path.name for path in tmp_path.iterdir()] == ["zip"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_are_refused_before_anything_is_written(tmp_path: Path, out: Path, kind: int) -> None:
    info = ZipInfo("a/link")
    info.external_attr = (kind | 0o777) << 16
    path = pack(tmp_path / "x.zip", {"a/1.txt": b"one", info: b"/etc/passwd"})
    assert "is a link or a device" in error(path, out)
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_a_half_unpacked_folder_is_not_taken_for_whole(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / "x.zip", FILES)
    copied = []

    def copy(source: io.BufferedIOBase, sink: io.BufferedIOBase, length: int) -> None:
        copied.append(source)
        if len(copied) == 2:
            sink.write(source.read(100))
            raise KeyboardInterrupt
        shutil_copy(source, sink, length)

    shutil_copy = shutil.copyfileobj
    monkeypatch.setattr(shutil, "copyfileobj", copy)
    with pytest.raises(KeyboardInterrupt):
        unpack(path, "", out)
    assert not out.exists()
    (tmp_path / ".out.unfinished/stray.txt").write_bytes(b"of another archive")
    unpack(path, "", out)
    assert contents(out) == FILES


def broken(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        path.write_bytes(change(pack(path, FILES).read_bytes()))
        return path

    return make


DEFLATED = (lambda packer: packer.compress(FILES["a/b/2.txt"]) + packer.flush())(zlib.compressobj(wbits=-15))


@pytest.mark.parametrize(
    "make",
    [
        broken(lambda data: data[:-30]),
        broken(lambda data: b"no archive"),
        broken(lambda data: b""),
        broken(lambda data: data.replace(DEFLATED, b"\xff" * len(DEFLATED))),
        broken(lambda data: data.replace(DEFLATED, DEFLATED[:5] + bytes(len(DEFLATED) - 5))),
    ],
)
def test_a_broken_archive_is_named(tmp_path: Path, out: Path, make: Callable[[Path], Path]) -> None:
    assert "cannot unpack" in error(make(tmp_path / "x.zip"), out)


def test_an_encrypted_archive_is_named(tmp_path: Path, out: Path) -> None:
    data = bytearray(pack(tmp_path / "x.zip", {"a": b"secret"}).read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    assert "cannot unpack" in error(tmp_path / "x.zip", out)


def test_a_member_that_is_not_there(tmp_path: Path, out: Path) -> None:
    assert "holds no a/c" in error(pack(tmp_path / "x.zip", FILES), out, "a/c")


def test_room_on_the_disk_is_seen_to_first(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "x.zip", FILES)
    needed = sum(map(len, FILES.values()))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    assert "are free there" in error(path, out)
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=needed))
    unpack(path, "", out)
    assert contents(out) == FILES


def test_room_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    check_space(tmp_path / "a/b", 1)
    with pytest.raises(InnerVisionError, match=r"needs 1000000000\.0 GB"):
        check_space(tmp_path / "a/b", 10**18)
