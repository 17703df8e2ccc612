"""Files fetched over HTTP: resumed where they were cut, and believed only when their checksum is right.

The transport is that of huggingface_hub, which works with any server. (pooch, the usual library for data sets, starts a
file from its first byte again after every cut.)
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.file_download import http_get

from innervision.errors import InnerVisionError, first_line, require


@dataclass(frozen=True)
class Remote:
    """A file on a server, and how to tell that it has arrived whole."""

    url: str
    size: int
    """In bytes."""
    sha256: str
    """In hexadecimal digits."""


def download(remote: Remote, path: Path) -> None:
    """Fetch a file; `path` appears only when all of it is there and its checksum is right.

    What has come so far is in `path` + ".part", from where another call resumes. A file that is there already is left
    as it is.

    Raises:
        InnerVisionError: the server does not have the file or cannot be reached; what arrived is not the file, and has
            been deleted.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = partial(path)
    with part.open("ab") as file:
        try:
            if file.tell() < remote.size:
                http_get(remote.url, file, resume_size=file.tell())
        except Exception as error:  # huggingface_hub changes its own HTTP library, and with it what it raises
            raise InnerVisionError(
                f"cannot download {remote.url}: {first_line(error)}\n"
                f"The next call resumes after {file.tell():,} of {remote.size:,} bytes"
            ) from error
    size = part.stat().st_size
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest() if size == remote.size else f"of {size:,} bytes"
    if found != remote.sha256:
        part.unlink()
    require(
        found == remote.sha256,
        f"{remote.url} is not the file it should be: it is {found}, not {remote.sha256} of {remote.size:,} bytes\n"
        "It was deleted; try again, or from another mirror",
    )
    part.replace(path)


def partial(path: Path) -> Path:
    """Give the place of what has come so far of `path`."""
    return path.with_name(f"{path.name}.part")
