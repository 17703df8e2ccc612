"""Files fetched over HTTP: gone on with where they were cut, and believed only when their checksum is right.

pooch, the usual library for this, starts a file from its first byte again after every cut.
"""

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm import tqdm

from innervision.errors import InnerVisionError

TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as cut."""
TRIES = 6
"""Connections in a row that bring nothing new before it is given up."""
PAUSE = 1.0
"""Seconds before the next try; doubled with every one that brings nothing."""
_CHUNK = 1 << 14  # as much is lost at most when a connection is cut


@dataclass(frozen=True)
class Remote:
    """A file on a server, and how to tell that it has arrived whole."""

    url: str
    size: int
    """In bytes."""
    sha256: str
    """In hexadecimal digits."""


def download(remote: Remote, path: Path, *, progress: bool = True) -> None:
    """Fetch a file; `path` appears only when all of it is there and its checksum is right.

    What has come so far is in `path` + ".part", from where another call goes on. A file that is there already is
    left as it is.

    Raises:
        InnerVisionError: the server does not have the file, has another one or cannot be reached; what arrived is
            not the file, and has been deleted.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = partial(path)
    try:
        _fetch(remote, part, progress)
    except requests.RequestException as error:
        raise InnerVisionError(f"cannot download {remote.url}: {error}") from error
    found = _sha256(part, progress)
    if found != remote.sha256:
        part.unlink()
        raise InnerVisionError(
            f"{remote.url} is not the file it should be: its SHA-256 is {found}, not {remote.sha256}. "
            "It was deleted; try again, or from another mirror"
        )
    part.replace(path)


def partial(path: Path) -> Path:
    """Give the place of what has come so far of `path`."""
    return path.with_name(f"{path.name}.part")


def _fetch(remote: Remote, part: Path, progress: bool) -> None:
    """Connect until all bytes are in `part`."""
    furthest, fruitless = _size(part), 0
    if furthest > remote.size:  # of another file
        part.unlink()
    bar = tqdm(total=remote.size, desc=part.stem, unit="B", unit_scale=True, disable=not progress)
    with bar, requests.Session() as session:
        while _size(part) < remote.size or not part.exists():
            reason = "it ended early"
            try:
                _append(session, remote, part, bar)
            except requests.exceptions.ChunkedEncodingError:
                pass  # the same, in many words
            except (requests.ConnectionError, requests.Timeout) as error:
                reason = str(error)
            if (reached := _size(part)) == remote.size:
                break
            fruitless = 0 if reached > furthest else fruitless + 1
            furthest = max(furthest, reached)
            if fruitless == TRIES:
                raise InnerVisionError(
                    f"the connection to {remote.url} was lost ({reason}); "
                    f"the next call goes on after {reached:,} of {remote.size:,} bytes"
                )
            pause = PAUSE * 2**fruitless
            bar.write(f"{part.stem}: the connection was lost ({reason}); next try in {pause:.0f} s")
            time.sleep(pause)


def _append(session: requests.Session, remote: Remote, part: Path, bar: tqdm) -> None:
    """Write what the server sends, from the first byte that is lacking; from the first of all if it cannot do that."""
    have = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with session.get(remote.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        status = f"{response.status_code} {response.reason}"
        if response.status_code in (408, 429) or response.status_code >= 500:
            raise requests.ConnectionError(f"the server answers {status}")
        if not response.ok:
            raise InnerVisionError(f"cannot download {remote.url}: the server answers {status}")
        total = response.headers.get("Content-Length")
        if response.status_code == 206:
            found = re.fullmatch(rf"bytes {have}-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if not found:
                raise InnerVisionError(f"{remote.url}: the server answers with another part than it was asked for")
            total = found[1]
        else:
            have = 0
        if total and total.isdigit() and int(total) != remote.size:
            raise InnerVisionError(f"{remote.url} has {int(total):,} bytes, not {remote.size:,}: it is another file")
        bar.reset(remote.size)
        bar.update(have)
        with part.open("ab" if have else "wb") as file:
            for chunk in response.iter_content(_CHUNK):
                have += len(chunk)
                if have > remote.size:
                    raise InnerVisionError(f"{remote.url} has more than {remote.size:,} bytes: it is another file")
                file.write(chunk)
                bar.update(len(chunk))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path, progress: bool) -> str:
    digest = hashlib.sha256()
    bar = tqdm(total=_size(path), desc="checking", unit="B", unit_scale=True, leave=False, disable=not progress)
    with bar, path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()
