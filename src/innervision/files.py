"""Files written so that a reader never finds half of one, and folders of weights recognised again."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from innervision.errors import InnerVisionError

SAMPLE = 1 << 16
"""Bytes at both ends of a file that go into a fingerprint."""


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
        reason = error.strerror if isinstance(error, OSError) else error
        raise InnerVisionError(f"cannot write {path}: {reason}") from error


def fingerprint(folder: str | Path) -> str:
    """Give a short hash of a model folder: the configuration, and size and both ends of every weight file.

    It tells one checkpoint from another wherever the folder lies, without reading gigabytes.
    """
    digest = hashlib.sha256()
    kinds = (".json", ".safetensors", ".bin", ".pth", ".pt")
    for path in sorted(file for file in Path(folder).rglob("*") if file.suffix in kinds):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLE))
            file.seek(max(0, size - SAMPLE))
            digest.update(file.read(SAMPLE))
    return f"sha256:{digest.hexdigest()[:16]}"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
