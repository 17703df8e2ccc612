"""The one exception that users are meant to see, short ways to it, and text that a terminal may show."""

import unicodedata
from collections.abc import Iterable, Sequence


class InnerVisionError(Exception):
    """Something the user can put right: the message says in one or two lines what is wrong and what to do.

    The command line prints the message without a traceback and exits with status 1.
    """


class SharedError(InnerVisionError):
    """An error that all processes of a job come to know: the first one tells it for all."""


def require(condition: bool, message: str) -> None:
    """Raise InnerVisionError with the message unless the condition holds."""
    if not condition:
        raise InnerVisionError(message)


def first_line(error: Exception) -> str:
    """Give the first line of an error's message that says something, cut to 300 characters, or the error's kind."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= 300 else f"{line[:299]}…"


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that the memory of the machine does not suffice; PyTorch has no kind of its own."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def few(names: Iterable[str]) -> str:
    """Name the first three of many, and say how many more there are."""
    shown = sorted(names)
    return ", ".join(shown[:3]) + (f" … and {len(shown) - 3:,} more" if len(shown) > 3 else "")


def listed(names: Sequence[str]) -> str:
    """Write names, one at least, as a sentence does: `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def printable(text: str) -> str:
    r"""Write the control characters of a text as \x1b and the like, all but line breaks: a terminal would obey them."""
    return "".join(ascii(each)[1:-1] if each != "\n" and _controls(each) else each for each in text)


def _controls(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs")
