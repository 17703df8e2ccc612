"""What the predictions of a run are scored by: the similarity of features, and the tasks of the experts.

Tasks come from the entry points of the group `innervision.tasks`, so other packages can bring their own: a class with
the methods of `innervision.tasks.task.Task`.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from innervision.errors import InnerVisionError

if TYPE_CHECKING:  # naming a task needs no torch
    from innervision.tasks.task import Task

__all__ = ["task_class", "task_names"]


def task_names() -> list[str]:
    """Give the names of all tasks that are installed."""
    return sorted(_tasks())


def task_class(name: str) -> "type[Task]":
    """Import a task.

    Raises:
        InnerVisionError: there is no such task, or it cannot be imported.
    """
    if name not in (tasks := _tasks()):
        raise InnerVisionError(f"there is no task {name!r}; the tasks are {', '.join(sorted(tasks))}")
    try:
        return tasks[name].load()
    except (ImportError, AttributeError) as error:
        raise InnerVisionError(f"the task {name!r} ({tasks[name].value}) cannot be imported: {error}") from error


def _tasks() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group="innervision.tasks")}
