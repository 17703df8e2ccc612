"""What installed packages offer through entry points, in the groups `innervision.GROUP`.

| group | what | must have the methods of |
|---|---|---|
| targets | experts | `innervision.targets.target.Target` |
| probes | probes | `innervision.probes.probe.Probe` |
| tasks | what predictions are scored by | `innervision.tasks.task.Task` |
| layouts | checkpoints that are not in Hugging Face's layout | `innervision.checkpoints.layout.Layout` |
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from innervision.errors import InnerVisionError


def offered(group: str) -> dict[str, EntryPoint]:
    """Give all that is installed of a group, by name; nothing is imported."""
    return {entry.name: entry for entry in entry_points(group=f"innervision.{group}")}


def find(group: str, name: str) -> Any:
    """Import what a name of a group stands for.

    Raises:
        InnerVisionError: no installed package offers it, or it cannot be imported.
    """
    entry = require_offered(group, name)
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        kind = group.removesuffix("s")
        raise InnerVisionError(f"the {kind} {name!r} ({entry.value}) cannot be imported: {error}") from error


def require_offered(group: str, name: str) -> EntryPoint:
    """Give what a name of a group stands for; nothing is imported.

    Raises:
        InnerVisionError: no installed package offers it.
    """
    if name not in (known := offered(group)):
        kind = group.removesuffix("s")
        raise InnerVisionError(f"there is no {kind} {name!r}; known are {', '.join(sorted(known))}")
    return known[name]
