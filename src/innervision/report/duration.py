"""What work took, as runs record it, in words."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any


def duration(took: Any) -> str:
    """Write what `innervision.engine.progress.Took` recorded, which may come from strangers or not be there.

    Returns:
        Such as `0:12:05 (h:mm:ss), 0:48:20 over all devices`; the latter where it differs; `not recorded`.
    """
    if not isinstance(took, Mapping) or not all(_is_time(took.get(name)) for name in ("seconds", "device_seconds")):
        return "not recorded"
    wall, together = (timedelta(seconds=round(took[name])) for name in ("seconds", "device_seconds"))
    return f"{wall} (h:mm:ss)" + ("" if wall == together else f", {together} over all devices")


def _is_time(value: Any) -> bool:
    """Tell whether a value is a number of seconds that a `timedelta` can hold."""
    return type(value) in (int, float) and 0 <= value <= timedelta.max.total_seconds() / 2
