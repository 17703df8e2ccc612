"""JSON that may come from strangers."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from innervision.errors import InnerVisionError, first_line
from innervision.files import require_regular

LARGEST = 2 << 30
"""Bytes of a JSON file, at most; the largest of COCO 2017 has 470 MB."""


def read_json(
    path: str | Path, *, unique: bool = False, decode: Callable[[str], Any] | None = None, largest: int = LARGEST
) -> Any:
    """Read a JSON file.

    Args:
        path: of the file, in UTF-8.
        unique: refuse an object that has a key twice, of which `json` would keep the last.
        decode: reads the text, in place of `json.loads`; may raise what that raises.
        largest: bytes that the file may have.

    Raises:
        InnerVisionError: it does not exist, cannot be read, is too large or too deep, or is not JSON.
    """
    text = read_text(path, largest)
    return parse_json(text, path, unique=unique) if decode is None else _decode(decode, text, path)


def parse_json(text: str | bytes, source: str | Path, *, unique: bool = False) -> Any:
    """Parse JSON that `source` holds; see `read_json`."""
    pairs = _unique if unique else None
    return _decode(lambda text: json.loads(text, object_pairs_hook=pairs), text, source)


def read_text(path: str | Path, largest: int = LARGEST, kind: str = "JSON") -> str:
    """Read a text file in UTF-8, with or without a byte order mark; `kind` says what it should be.

    Raises:
        InnerVisionError: it does not exist, is no regular file (a pipe would be waited for), cannot be read, is too
            large or no such text.
    """
    path = Path(path)
    try:
        require_regular(path)
        if (size := path.stat().st_size) > largest:
            raise InnerVisionError(f"{path} is too large: it has {size:,} bytes, more than {largest:,}")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InnerVisionError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InnerVisionError(f"{path} is not valid {kind}: it is not UTF-8 text") from error
    except MemoryError as error:
        raise InnerVisionError(f"cannot read {path}: memory does not suffice") from error


def _decode(decode: Callable[[Any], Any], text: str | bytes, source: str | Path) -> Any:
    try:
        return decode(text)
    except RecursionError as error:
        raise InnerVisionError(f"{source} is nested too deeply to be read") from error
    except MemoryError as error:
        raise InnerVisionError(f"cannot read {source}: memory does not suffice") from error
    except ValueError as error:
        raise InnerVisionError(f"{source} is not valid JSON ({first_line(error)}): is the file complete?") from error


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"it has the key {key!r:.80} twice")
        content[key] = value
    return content
