"""What the names of weights tell of a model's size."""

from collections.abc import Iterable


def count_parts(names: Iterable[str], part: str) -> int:
    """Count a model's parts `PART.0`, `PART.1`, … by the names of its weights.

    Raises:
        KeyError: there is none, or one of them is missing.
    """
    numbers = {int(name.removeprefix(f"{part}.").split(".")[0]) for name in names if name.startswith(f"{part}.")}
    if not numbers:
        raise KeyError(part)
    if gaps := set(range(len(numbers))) - numbers:  # whose count no name can claim without weights
        raise KeyError(f"{part}.{min(gaps)}")
    return len(numbers)
