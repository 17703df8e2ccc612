"""What the README and the pages of docs/ tell their readers to type."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`((?:innervision|python -m|make|pip|torchrun) [^`]+)`")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    """Its path in the clone."""
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


class Command(NamedTuple):
    """A line of shell, as words."""

    page: str
    line: int
    """Of the block, or of the command in running text."""
    words: list[str]

    @property
    def innervision(self) -> list[str] | None:
        """The words after `innervision`, also where another program starts it; None for other commands."""
        for start in (["innervision"], ["-m", "innervision"]):
            for i in range(len(self.words)):
                if self.words[i : i + len(start)] == start and (i == 0 or len(start) == 2):
                    return self.words[i + len(start) :]
        return None

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {' '.join(self.words)}"


def blocks(language: str) -> list[Block]:
    """All blocks of a language, in the order of the pages."""
    return [
        Block(page.relative_to(ROOT).as_posix(), text.count("\n", 0, match.start()) + 1, match[2], match[3])
        for page in PAGES
        for text in [page.read_text()]
        for match in _BLOCK.finditer(text)
        if match[2] == language
    ]


def commands() -> list[Command]:
    """All commands of shell blocks."""
    return [Command(block.page, block.line, words) for block in blocks("bash") for words in _lines(block.text)]


def inline_commands() -> list[Command]:
    """Commands in running text, but for those that leave something out (…)."""
    return [
        Command(page.relative_to(ROOT).as_posix(), text.count("\n", 0, match.start()) + 1, words)
        for page in PAGES
        for text in [page.read_text()]
        for match in _INLINE.finditer(text)
        if "…" not in match[1]
        for words in _lines(match[1])
    ]


def _lines(text: str) -> Iterator[list[str]]:
    """Split shell into commands as a shell would: comments go, continued lines are joined."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        words = [] if re.match(r"\w+=", line.strip()) else shlex.split(line, comments=True)  # a variable is set
        if words:
            yield words
