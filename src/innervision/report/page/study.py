"""All that a page tells of its runs, read once: scores, floors, differences, sample sizes, settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from innervision.engine.gains import Gain, last_doubling
from innervision.engine.run import RunFolder
from innervision.errors import InnerVisionError, printable, require
from innervision.json_files import read_json
from innervision.metrics.registry import METRICS, Metric, find_metric
from innervision.report.compare import Compared, compare
from innervision.report.figures import COLORS, ScoredRun, name_runs, read_run, scored_alike
from innervision.report.files import read_scores
from innervision.report.floors import COLUMNS, above_floors
from innervision.report.sample_size import read_sample_sizes
from innervision.report.tables import in_order


@dataclass
class Studied:
    """One run of a study."""

    label: str
    scored: ScoredRun
    scores: pd.DataFrame
    """As `summarize` gives them, groups included, by one rule for all runs; a column names the evaluation."""
    floors: pd.DataFrame
    """As `above_floors` gives them, by the same rule."""
    gains: dict[str, Gain] | None
    """By target; None where probes are not exact, or their files are not there."""
    settings: dict[str, Any]
    record: dict[str, Any]
    bad_images: dict[str, Any]
    """Images that training left out, and why."""

    @property
    def probe_kind(self) -> str | None:
        """Of the probes, where the settings tell."""
        probe = self.settings.get("probe")
        return str(probe["kind"]) if isinstance(probe, dict) and "kind" in probe else None


@dataclass
class Study:
    """The runs of a page, and what each has that another has not."""

    runs: list[Studied]
    pairs: dict[tuple[int, int], Compared | str]
    """By the numbers of two runs, the smaller first: their differences, first less second; or why there are none."""

    @property
    def metrics(self) -> dict[str, Metric]:
        """Those that tasks brought, by key."""
        return {key: metric for run in self.runs for key, metric in run.scored.metrics.items()}

    def metric(self, key: str) -> Metric:
        """Give the metric of a key in a score table."""
        return find_metric(key, self.metrics)

    @property
    def targets(self) -> list[str]:
        """All targets, in the order of the runs."""
        return list(dict.fromkeys(target for run in self.runs for target in run.scores["target"]))

    def keys(self, target: str) -> list[str]:
        """Name the metrics that a target has scores of: those of its task first, then similarity; main ones first."""
        tables = [run.scores[run.scores["target"] == target] for run in self.runs]
        rows = pd.concat(tables).drop_duplicates(["evaluation", "metric"])
        order = in_order(rows["metric"], [*METRICS, *self.metrics])
        tasks = set(rows.loc[rows["evaluation"] != "similarity", "metric"])
        return sorted(order, key=lambda key: (not self.metric(key).main, key not in tasks, order.index(key)))

    def headlines(self, target: str) -> list[str]:
        """Name the metrics that findings are told by: the main one of the task, and the similarity beyond the mean."""
        keys = self.keys(target)
        similarity = [key for key in ("centred_cosine", "cosine") if key in keys][:1]
        others = [key for key in keys if self.metric(key).main and key not in ("centred_cosine", "cosine")]
        return [*others[:1], *similarity] or keys[:1]


def of_metric(table: pd.DataFrame, target: str, key: str) -> pd.DataFrame:
    """Give the rows of a table that are of one target and one metric."""
    return table[(table["target"] == target) & (table["metric"] == key)]


def read_study(runs: Sequence[str | Path], labels: Sequence[str] | None = None) -> Study:
    """Read all that a page tells of its runs.

    Raises:
        InnerVisionError: a run or its scores are missing or cannot be read, there are more than seven, one is given
            twice, or there are not as many labels as runs.
    """
    require(len(runs) <= len(COLORS), f"a page holds {len(COLORS)} runs at most; give fewer")
    places = [Path(run).resolve() for run in runs]
    twice = [str(run) for run, place in zip(runs, places, strict=True) if places.count(place) > 1]
    require(not twice, f"{twice[0] if twice else ''} is given twice; give each run once")
    read = [read_run(run) for run in runs]
    names = name_runs([run.path for run in read], labels)
    alike = scored_alike(read)
    studied = [_study(*each) for each in zip(names, read, alike, strict=True)]
    pairs = {(one, other): _compare(runs[one], runs[other]) for one, other in combinations(range(len(runs)), 2)}
    return Study(studied, pairs)


def _study(label: str, run: ScoredRun, scores: pd.DataFrame) -> Studied:
    rules = scores[["target", "metric", "protocol"]].drop_duplicates()
    parts = []
    for name, facts in run.facts.items():
        table = read_scores(run.path, name)
        table = table[table["protocol"].isin(set(rules["protocol"]))]
        parts.append(above_floors(table, facts.metrics))
    floors = pd.concat(parts, ignore_index=True).merge(rules)[COLUMNS]
    if run.protocol != "standard":
        label = f"{label}, {run.protocol} protocol"
    folder = RunFolder(run.path)
    content = folder.read()
    return Studied(
        printable(label),
        run,
        scores,
        floors,
        _gains(run.path),
        content["settings"],
        content["record"],
        _bad_images(folder),
    )


def _bad_images(folder: RunFolder) -> dict[str, Any]:
    if not folder.bad_images.exists():
        return {}
    content = read_json(folder.bad_images)
    require(isinstance(content, dict), f"{folder.bad_images} does not say which images were left out")
    return content


def _gains(run: Path) -> dict[str, Gain] | None:
    try:
        table = read_sample_sizes(run)
    except InnerVisionError:
        return None
    found = {}
    for target, rows in table.sort_values("images").groupby("target", sort=False):
        curves = {
            int(str(layer)): [*zip(line["images"], line["explained_variance"], strict=True)]
            for layer, line in rows.groupby("layer")
        }
        if gain := last_doubling(curves):
            found[str(target)] = gain
    return found


def _compare(first: str | Path, second: str | Path) -> Compared | str:
    try:
        return compare(first, second)
    except InnerVisionError as error:
        return printable(str(error))
