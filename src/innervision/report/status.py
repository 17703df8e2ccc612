"""What of a run is done, and what is missing."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from innervision.engine.run import RunFolder, evaluation_of
from innervision.errors import InnerVisionError, first_line
from innervision.json_files import read_json
from innervision.registry import offered
from innervision.report.files import tables_of

DEEPEST = 3
"""Levels of folders below which runs are looked for."""


class Status(NamedTuple):
    """The state of a run."""

    run: str
    """Its folder, or what it was called by."""
    mllm: str
    targets: str
    probes: str
    """trained, or how far."""
    scores: str
    """Its tables, with the number of images."""
    missing: str
    """Evaluations that it could have, or what is wrong with the run."""


def find_runs(folder: str | Path) -> list[Path]:
    """Give a run, or all runs in a folder, in alphabetical order.

    Raises:
        InnerVisionError: there is none.
    """
    folder = Path(folder)
    found = [folder] if (folder / "run.yaml").exists() else []
    for level in range(1, DEEPEST + 1 if not found else 0):
        found += [path.parent for path in folder.glob(f"{'*/' * level}run.yaml")]
    if not found:
        what = "holds no run" if folder.is_dir() else "does not exist"
        raise InnerVisionError(f"{folder} {what}; a run is a folder with a run.yaml, which innervision train makes")
    return sorted(found)


def read_status(run: str | Path) -> Status:
    """Read the state of a run; one that cannot be read says so under `missing`."""
    folder = RunFolder(run)
    try:
        settings, record = folder.settings(), folder.record()
    except InnerVisionError as error:
        return Status(str(run), "", "", "", "", first_line(error))
    experts: dict[str, Any] = record.get("experts", {})
    part = {"llm": ", random LLM", "all": ", random weights"}.get(settings.random_weights, "")
    kinds = {expert["kind"] for expert in experts.values()}
    tables = tables_of(folder.path)
    wanted = ["similarity", *sorted(kinds & offered("tasks").keys())]
    unfinished = _unfinished(folder)
    done = {evaluation_of(table) for table in [*tables, *unfinished]}
    return Status(
        str(run),
        settings.mllm + part,
        ", ".join(experts),
        "trained" if all(folder.probes(name).exists() for name in experts) else _progress(folder),
        ", ".join(f"{table} {_images(folder.scores / f'{table}.json')}".strip() for table in tables),
        ", ".join([*unfinished.values(), *(name for name in wanted if name not in done)]),
    )


def format_status(runs: Sequence[Status]) -> str:
    """Write a line for each run, below the names of the columns."""
    rows = [("run", "MLLM", "targets", "probes", "scores (images)", "not scored"), *runs]
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(map(str.rstrip, lines))


def _progress(run: RunFolder) -> str:
    """Say how far a training is that is not finished."""
    try:
        last = json.loads(run.log.read_text(encoding="utf-8").splitlines()[-1])
        return f"step {last['step']} of {last['of']}"
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return "not begun"


def _images(facts: Path) -> str:
    """Give the number of images that a table is over, as written beside it."""
    try:
        return f"{len(read_json(facts)['images']):,}"
    except (InnerVisionError, KeyError, TypeError):
        return ""


def _unfinished(run: RunFolder) -> dict[str, str]:
    """Name tables that were begun, and say how much of them is done."""
    found = {}
    for plan in sorted(run.scores.glob(".*/plan.json")):
        name = plan.parent.name[1:]
        if (run.scores / f"{name}.parquet").exists():
            continue
        try:
            content = read_json(plan)
            batches = math.ceil(content["num_images"] / content["batch_size"])
            found[name] = f"{name} ({len(list(plan.parent.glob('*.parquet')))} of {batches} batches done)"
        except (InnerVisionError, KeyError, TypeError, ZeroDivisionError):
            continue
    return found
