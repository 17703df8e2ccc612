"""ZIP archives from outside, unpacked so that nothing leaves its folder and nothing half-done looks finished."""

import os
import shutil
import stat
import zlib
from pathlib import Path, PurePosixPath
from typing import IO
from zipfile import BadZipFile, ZipFile, ZipInfo

from tqdm import tqdm

from innervision.errors import InnerVisionError


def unpack(archive: Path | IO[bytes], member: str, out: Path) -> None:
    """Unpack the file or folder `member` to `out`, which appears when all of it is there.

    If `out` exists it is left as it is.

    Args:
        archive: path of the ZIP file, or the open file.
        member: with `/`; empty for all.
        out: of the file or folder.

    Raises:
        InnerVisionError: the archive is broken, lacks the member, or would write outside of `out` or make anything
            but files and folders; the disk is too small.
    """
    if out.exists():
        return
    name = getattr(archive, "name", archive)
    unfinished = out.with_name(f".{out.name}.unfinished")
    try:
        with ZipFile(archive) as opened:
            targets = _targets(opened, member, unfinished, str(name))
            if unfinished.is_dir():  # of a call that was stopped
                shutil.rmtree(unfinished)
            check_space(out.parent, sum(info.file_size for info in targets))
            for info, path in tqdm(targets.items(), desc=out.name, unit=" files", disable=None):
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except (BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InnerVisionError(f"cannot unpack {name}: {error}") from error
    if hasattr(os, "sync"):
        os.sync()  # so that no crash after the next line leaves empty files; one by one it would take hours
    unfinished.replace(out)


def check_space(folder: Path, needed: int) -> None:
    """See that `needed` bytes fit on the disk of `folder`, which need not exist yet.

    Raises:
        InnerVisionError: they do not.
    """
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InnerVisionError(f"{folder} needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free there")


def _targets(archive: ZipFile, member: str, out: Path, name: str) -> dict[ZipInfo, Path]:
    """Say where each file of `member` goes, in the order in which they lie in the archive."""
    targets = {}
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if member and info.filename != member and not info.filename.startswith(f"{member}/"):
            continue
        path = PurePosixPath(info.filename)
        if path.is_absolute() or ".." in path.parts or any(mark in info.filename for mark in "\\:"):
            raise InnerVisionError(f"{name} is refused: its member {info.filename!r} leads out of the folder")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InnerVisionError(f"{name} is refused: its member {info.filename!r} is a link or a device")
        if not info.is_dir():
            targets[info] = out / path.relative_to(member)
    if not targets:
        raise InnerVisionError(f"{name} holds no {member or 'file'}")
    return targets
