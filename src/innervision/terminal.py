"""What is told to the user beside results: one line at a time, on standard error, above a bar if there is one."""

import os
import sys
from collections.abc import Mapping

from tqdm import tqdm

from innervision.errors import few, printable


def show(text: object) -> None:
    """Print a result, without what a terminal would obey: names in it may come from strangers."""
    print(printable(str(text)))


def tell(text: str, *, from_all: bool = False) -> None:
    """Write a line, without what a terminal would obey.

    Where several processes work, the first one alone writes, unless what it tells is `from_all`.
    """
    if from_all or os.environ.get("RANK", "0") == "0":
        tqdm.write(printable(text), file=sys.stderr)


def tell_left_out(reasons: Mapping[str, str]) -> None:
    """Say how many images are left out, and name the first few with their reasons."""
    if reasons:
        some = few(f"{name} ({reason})" for name, reason in reasons.items())
        tell(f"left out {len(reasons):,} image{'s' if len(reasons) > 1 else ''}: {some}")
