"""What the names of weights tell of a model's size."""

import re
from collections.abc import Iterable


def count_parts(names: Iterable[str], pattern: str) -> int:
    """Count the numbered parts of a model whose names match, the number being the pattern's group.

    Raises:
        KeyError: there is none.
    """
    numbers = {int(found[1]) for name in names if (found := re.match(pattern, name))}
    if not numbers:
        raise KeyError(pattern)
    return max(numbers) + 1
