"""Files written so that a reader never finds half of one, and folders that one process at a time writes."""

import os
import re
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from innervision.errors import InnerVisionError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, the file written there takes its place.

    The data reaches the disk before the rename (fsync), so after a crash `path` holds either its old content
    or all of the new one. If the block fails, the temporary file goes and `path` is left as it was.

    Raises:
        InnerVisionError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise InnerVisionError(f"cannot write {path}: {reason}") from error


def require_regular(path: str | Path) -> None:
    """See that a file is a regular one, if it is there: a pipe would be waited for, a device read without end.

    Raises:
        InnerVisionError: it is something else.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise InnerVisionError(f"cannot read {path}: it is not a regular file")


def remove_half_written(*folders: Path) -> None:
    """Delete what `atomic_write` leaves in folders when its process is killed; none may be at work there."""
    for folder in folders:
        for path in folder.glob(".*-*"):
            if re.fullmatch(r"\..+-[a-z0-9_]{8}(\.\w+)?", path.name):  # as tempfile names them
                path.unlink(missing_ok=True)


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the lock file `path` while the block runs, and delete it afterwards.

    The system lets go of the lock when its process ends, however it ends: a file that is left behind holds nobody up.
    The folder is made if it does not exist, and goes again if nothing is written to it.

    Raises:
        InnerVisionError: another process holds the lock, or the folder cannot be written.
    """
    path = Path(path)
    made = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _lock(path)
    except OSError as error:
        raise InnerVisionError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
        if made:
            with suppress(OSError):  # it holds something now
                path.parent.rmdir()


def _lock(path: Path) -> IO[str]:
    """Open and lock the file, and write into it who holds it."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            _take(file)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            file.close()
            raise InnerVisionError(
                f"{path.parent} is being written by {holder}: wait until it is done, or stop it"
            ) from error
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # whoever held it has deleted it since
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _take(file: IO[str]) -> None:
    """Lock an open file for this process alone, not for those that it starts."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise
    except OSError as error:
        warnings.warn(
            f"{file.name} cannot be locked ({error.strerror}): see that no other process writes there", stacklevel=2
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
