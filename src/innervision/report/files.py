"""What a report reads of a run: its settings, a table of scores, and what is written beside the table."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from innervision.engine.run import OWN_NAME, RunFolder, evaluation_of, table_name
from innervision.errors import InnerVisionError
from innervision.json_files import read_json
from innervision.metrics.registry import Metric

COLUMNS = ["image", "target", "layer", "source", "metric", "protocol", "value"]


_PARTS = ("plan", "images", "metrics", "setup", "settings", "bad_images", "took")
"""Of the file beside a table, each an object of JSON."""


@dataclass(frozen=True)
class Facts:
    """What RUN/scores/NAME.json says of the table beside it. Tables of older versions lack parts of it."""

    plan: Mapping[str, Any] = field(default_factory=dict)
    """What was scored, by what, and against what."""
    images: Mapping[str, str] = field(default_factory=dict)
    """Of each image's name a hash of its content."""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    """Those that the task brought, by key."""
    setup: Mapping[str, Any] = field(default_factory=dict)
    """Devices, number types, processors and versions of packages."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the evaluation, as they were given."""
    bad_images: Mapping[str, Any] = field(default_factory=dict)
    """Images that were left out, and why."""
    took: Mapping[str, Any] = field(default_factory=dict)
    """Seconds, see `innervision.engine.progress.Took`."""
    features: Any = None
    """Which model's features images were compared in."""


def read_scores(run: str | Path, evaluation: str = "similarity") -> pd.DataFrame:
    """Read `run/scores/EVALUATION.parquet`: one row per score, with the columns of `COLUMNS`.

    `layer` is a nullable integer: -1 is the output of the vision tower, 0 the embeddings that enter the decoder, 1 and
    up its layers; null belongs to no layer (the mean feature). The other columns are strings (as categories), but for
    `value`, a float64. The tables of tasks have two more: `group`, a class or type of scene (null: the score belongs
    to none), and `weight`, what an image's value weighs in the mean, a float64.

    Raises:
        InnerVisionError: there is no such run, it has not been evaluated, or the file is not a score table.
    """
    path = Path(run) / "scores" / f"{evaluation}.parquet"
    kind, _, name = evaluation.partition(OWN_NAME)
    data = "--images" if kind == "similarity" else "--data"
    command = f"innervision evaluate {kind} {run} {data} PATH" + (f" --name {name}" if name else "")
    RunFolder(run).read()  # says so if there is no run
    if not path.is_file():
        raise InnerVisionError(f"{run} has no {evaluation} scores yet. Make them with: {command}")
    try:
        weighted = [name for name in ("group", "weight") if name in pq.read_schema(path).names]
        strings = [name for name in [*COLUMNS, *weighted] if name not in ("layer", "value", "weight")]
        scores = pd.read_parquet(path, read_dictionary=strings)  # a tenth of the memory of strings
        types = dict.fromkeys(strings, "category") | {"layer": "Int64", "value": "float64"}
        scores = scores[[*COLUMNS, *weighted]].astype(types | ({"weight": "float64"} if "weight" in weighted else {}))
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are among these
        raise InnerVisionError(f"{path} is not a score table ({error}). Make it again with: {command}") from error
    if scores.empty:
        raise InnerVisionError(f"{path} holds no scores. Make it again with: {command}")
    return scores


def evaluations_of(run: str | Path, name: str | None = None) -> list[str]:
    """Name the tables of scores that a run has; those of `similarity` come first, the others by the alphabet.

    Args:
        run: its folder.
        name: which of several tables of a kind, see `table_name`; by default those without a name of their own.

    Raises:
        InnerVisionError: there is no such run, or it has no scores of this name.
    """
    tables = tables_of(run)
    found = [table for table in tables if table == table_name(evaluation_of(table), name)]
    if tables and not found:
        named = sorted({table.partition(OWN_NAME)[2] for table in tables})
        known = ", ".join(f"named {each}" if each else "without a name" for each in named)
        raise InnerVisionError(f"{run} has no scores {f'named {name}' if name else 'without a name'}, only {known}")
    if not found:
        read_scores(run)  # says what is missing
    return found


def tables_of(run: str | Path) -> list[str]:
    """Name all tables of scores that a run has, such as `similarity`, `similarity@val-b` and `depth`."""
    names = (path.stem for path in (Path(run) / "scores").glob("*.parquet"))
    return sorted(names, key=lambda table: (evaluation_of(table) != "similarity", table))


def read_facts(run: str | Path, evaluation: str) -> Facts:
    """Read what is written beside the table of an evaluation; what is missing stays empty.

    Raises:
        InnerVisionError: the file is broken, or describes a metric wrongly.
    """
    path = Path(run) / "scores" / f"{evaluation}.json"
    if not path.exists():
        return Facts()
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise TypeError("it is no JSON object")
        parts = {name: content.get(name) or {} for name in _PARTS}
        for name, part in parts.items():
            if not isinstance(part, dict):
                raise TypeError(f"{name} holds no names")
        for name in ("experts", "probes"):
            if not isinstance(parts["plan"].get(name, {}), dict):
                raise TypeError(f"{name} of its plan holds no names")
        known = {item.name for item in fields(Metric)}
        parts["metrics"] = {
            key: Metric(**{name: value for name, value in entry.items() if name in known})
            for key, entry in parts["metrics"].items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InnerVisionError(f"{path} cannot be read ({error}). Evaluate the run again with --overwrite.") from error
    return Facts(**parts, features=content.get("features"))


def read_settings(run: str | Path) -> Mapping[str, Any]:
    """Read the settings of a run from its run.yaml.

    Raises:
        InnerVisionError: there is no such run, or its run.yaml is of another version or cannot be read.
    """
    return RunFolder(run).read()["settings"]


def run_protocol(run: str | Path, facts: Facts) -> str:
    """Name the protocol by which a run's predictions were made: from its scores' plan, else from its settings.

    Raises:
        InnerVisionError: neither can be read.
    """
    return str(facts.plan.get("protocol") or read_settings(run).get("protocol") or "standard")
