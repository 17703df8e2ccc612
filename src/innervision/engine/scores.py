"""The score table of an evaluation: a Parquet file that grows by parts, so that what is done is never done again.

RUN/scores/NAME.parquet         one row per score
RUN/scores/NAME.json            what was scored (plan), images with a hash of each file's content, images that were left
                                out, metrics of the task's own, on what the scores were made (setup), what they took
RUN/scores/.NAME/000012.*       parts of an evaluation that is not finished, by number of the batch
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from innervision.engine.progress import Took
from innervision.errors import InnerVisionError
from innervision.files import atomic_write
from innervision.json_files import parse_json, read_json
from innervision.tasks.evaluation import Findings, Kept, Label, Scores, to_cpu

SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("target", pa.string()),
        ("layer", pa.int16()),
        ("source", pa.string()),
        ("metric", pa.string()),
        ("protocol", pa.string()),
        ("value", pa.float64()),
    ]
)
"""Of a score table. The layer is null where the score belongs to none (the mean feature)."""

WEIGHTED_SCHEMA = pa.schema([*SCHEMA, ("group", pa.string()), ("weight", pa.float64())])
"""Of the table of a task. The group is null where the score belongs to none; see `tasks.evaluation.Scores`."""

PATIENCE = 60.0
"""Seconds after which a part that a shared drive does not show is taken to be missing."""

Conclude = Callable[[Kept], Iterator[tuple[Sequence[Label], Scores]]]
"""`Evaluation.conclude`."""


class ScoreTable:
    """The table of one evaluation of a run. Several processes may write parts of it."""

    def __init__(self, folder: Path, name: str, plan: dict[str, Any], *, weighted: bool = False) -> None:
        """Point at `folder/name.parquet`.

        Args:
            folder: the run's scores.
            name: of the evaluation.
            plan: what is scored; parts of another plan are not used.
            weighted: whether the scores have weights and groups.
        """
        self.path = folder / f"{name}.parquet"
        self.facts = folder / f"{name}.json"
        self.parts = folder / f".{name}"
        self.lock = folder / f".{name}.lock"
        """Held by the process that writes the table."""
        self.plan = plan
        self.schema = WEIGHTED_SCHEMA if weighted else SCHEMA

    def is_complete(self, overwrite: bool) -> bool:
        """Tell whether the finished table is there and may stay.

        Raises:
            InnerVisionError: a finished table of another plan is there, and `overwrite` is not asked for.
        """
        if overwrite or not self.path.exists():
            return False
        other = _facts(self.path).get("plan", {})
        if other != self.plan:
            differences = "; ".join(f"{key}: {other.get(key)}" for key in self.plan if other.get(key) != self.plan[key])
            raise InnerVisionError(
                f"{self.path} holds scores made otherwise ({differences}); add --name NAME to keep both, or "
                "--overwrite to replace them"
            )
        if _read_plan(self.facts).get("plan") != self.plan:
            return False  # it was killed between the two files; its parts are still there
        shutil.rmtree(self.parts, ignore_errors=True)  # left by a process that was killed when it had finished
        return True

    def open(self) -> None:
        """Make ready for parts: those of the same plan are kept, others go."""
        plan = self.parts / "plan.json"
        if self.parts.exists() and _read_plan(plan) != self.plan:
            shutil.rmtree(self.parts)
        own = re.compile(re.escape(self.parts.name) + r"-[a-z0-9_]{8}\.(parquet|json)")  # as tempfile names them
        beside = [path for path in self.path.parent.glob(".*") if own.fullmatch(path.name)]
        half_written = [*self.parts.glob(".*"), *beside]
        for left_over in half_written:  # when a process was killed
            left_over.unlink()
        if not plan.exists():
            with atomic_write(plan) as temporary:
                temporary.write_text(json.dumps(self.plan), encoding="utf-8")

    def done(self) -> set[int]:
        """Give the numbers of the parts that are there; one that is broken, or lacks its arrays, is deleted."""
        for path in self._tables():
            if not _is_whole(path):
                path.unlink()
        return {int(path.stem) for path in self._tables()}

    def bad(self, numbers: Iterable[int]) -> list[tuple[str, str]]:
        """Read which images the parts of these numbers leave out, and why."""
        return [(name, reason) for number in sorted(numbers) for name, reason in _facts(self._part(number))["bad"]]

    def took(self) -> Took:
        """Sum up what the parts that are there took."""
        each = [Took(*_facts(path).get("took", ())) for path in self._tables()]
        return Took(*(sum(values) for values in zip(*each, strict=True)))

    def write_part(
        self,
        number: int,
        findings: Findings,
        hashes: Mapping[str, str],
        bad: Sequence[tuple[str, str]],
        took: Took,
    ) -> None:
        """Write one part.

        Args:
            number: of the batch.
            findings: what was found for its images.
            hashes: by the names of these images a hash of each file's content.
            bad: (name, reason) of the images that were left out.
            took: the time of the batch, shared out where several processes worked at once.
        """
        path = self._part(number)
        if findings.arrays:
            arrays = {
                json.dumps([*key, name]): array.cpu().contiguous()
                for key, by_name in findings.arrays.items()
                for name, array in by_name.items()
            }
            with atomic_write(path.with_suffix(".safetensors")) as temporary:
                save_file(arrays, temporary)
        facts = {
            "images": json.dumps(dict(hashes)),
            "bad": json.dumps(list(bad)),
            "arrays": json.dumps(bool(findings.arrays)),
            "took": json.dumps(took),
        }
        table = self._rows(findings.scores).replace_schema_metadata(facts)
        with atomic_write(path) as temporary:  # last: with it the part is there
            pq.write_table(table, temporary)

    def finish(self, count: int, facts: Callable[[], dict[str, Any]], conclude: Conclude) -> None:
        """Join the parts to one table, score what needs all images, and write what it was made from beside it.

        Args:
            count: how many parts there must be.
            facts: gives what to write beside the table, when that is done.
            conclude: scores what needs all images.

        Raises:
            InnerVisionError: a part is missing; those that are there stay.
        """
        parts = self.whole(count)
        schema = self.schema.with_metadata({"plan": json.dumps(self.plan)})
        images: dict[str, str] = {}
        with atomic_write(self.path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
            for path in parts:
                images |= _facts(path)["images"]
                writer.write_table(pq.read_table(path).replace_schema_metadata())
            for scores in conclude(_kept(parts)):
                writer.write_table(self._rows([scores]))
        with atomic_write(self.facts) as temporary:
            content = {"plan": self.plan, "images": images, **facts()}
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        shutil.rmtree(self.parts)

    def whole(self, count: int) -> list[Path]:
        """Give the paths of all parts. A shared drive may take a while to show what other machines have written.

        Raises:
            InnerVisionError: one of the `count` parts is still missing after `PATIENCE` seconds, or broken.
        """
        paths = [self._part(number) for number in range(count)]
        deadline = time.monotonic() + PATIENCE
        while not all(path.exists() for path in paths) and time.monotonic() < deadline:
            self._tables()  # to list a folder anew lets some drives see what is new in it
            time.sleep(0.5)
        if lacking := [number for number, path in enumerate(paths) if not _is_whole(path)]:
            raise InnerVisionError(
                f"{self.path} cannot be finished: {len(lacking)} of its {count} batches were not scored (the first is "
                f"number {lacking[0]}). Call again: only these are left to do"
            )
        return paths

    def _part(self, number: int) -> Path:
        return self.parts / f"{number:06}.parquet"

    def _tables(self) -> list[Path]:
        return sorted(path for path in self.parts.glob("*.parquet") if path.stem.isdecimal())

    def _rows(self, found: Sequence[tuple[Sequence[Label], Scores]]) -> pa.Table:
        """Make rows of the table."""
        tables = [self.schema.empty_table()]
        moved = to_cpu([scores for _, scores in found])
        for (labels, _), scores in zip(found, moved, strict=True):
            count = len(scores.values)
            index = np.arange(count) if scores.labels is None else np.asarray(scores.labels)
            columns = {
                name: pa.array([getattr(label, name) for label in labels], self.schema.field(name).type).take(
                    pa.array(index)
                )
                for name in Label._fields
            }
            columns |= {
                "metric": pa.array([scores.metric] * count, pa.string()),
                "protocol": pa.array([scores.protocol] * count, pa.string()),
                "value": pa.array(scores.values.numpy()),
                "group": pa.nulls(count, pa.string())
                if scores.groups is None
                else pa.array(scores.groups, pa.string()),
                "weight": pa.array(np.ones(count) if scores.weights is None else scores.weights.numpy()),
            }
            tables.append(pa.table([columns[name] for name in self.schema.names], schema=self.schema))
        return pa.concat_tables(tables)


def _read_plan(path: Path) -> dict[str, Any]:
    """Read a JSON object; nothing where it is missing or broken."""
    try:
        content = read_json(path)
    except InnerVisionError:
        return {}
    return content if isinstance(content, dict) else {}


def _kept(parts: Sequence[Path]) -> Kept:
    """Find the arrays of all parts."""
    files: dict[str, list[Any]] = {}  # by key in the files
    images: list[str] = []
    for path in parts:
        if (kept := path.with_suffix(".safetensors")).exists():
            file = safe_open(kept, "numpy")
            images.extend(_facts(path)["images"])
            for key in file.offset_keys():
                files.setdefault(key, []).append(file)
    names: dict[tuple[str, str, int | None], dict[str, str]] = {}
    for key in files:
        target, source, layer, name = json.loads(key)
        names.setdefault((target, source, layer), {})[name] = key

    def read(key: tuple[str, str, int | None]) -> dict[str, NDArray[Any]]:
        return {name: np.concatenate([file.get_tensor(key) for file in files[key]]) for name, key in names[key].items()}

    return Kept(images, list(names), read)


def _is_whole(path: Path) -> bool:
    """Tell whether a part is there, and has its arrays."""
    try:
        return not _facts(path)["arrays"] or len(safe_open(path.with_suffix(".safetensors"), "np").keys()) > 0
    except (OSError, ValueError, KeyError, SafetensorError, InnerVisionError):  # pyarrow's are among these
        return False


def _facts(table: Path) -> dict[str, Any]:
    """Read what a part, or the whole, says of itself."""
    metadata = pq.read_schema(table).metadata or {}
    return {
        name.decode(): parse_json(value, table)
        for name, value in metadata.items()
        if name in (b"images", b"bad", b"arrays", b"took", b"plan")
    }
