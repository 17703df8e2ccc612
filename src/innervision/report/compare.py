"""How much one run scores above another on the same images."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from innervision.errors import InnerVisionError
from innervision.metrics.registry import Metric, find_metric
from innervision.report.files import Facts, evaluations_of, read_facts, read_scores
from innervision.report.jackknife import SERIES, difference, jackknife
from innervision.report.tables import in_order

MAY_DIFFER = {"probes", "files", "num_images", "batch_size", "save_images", "experts"}
"""What two evaluations may have been made with, each its own, and be compared over the images that both have."""


class Compared(NamedTuple):
    """What two runs have in common."""

    differences: pd.DataFrame
    """As `summarize` gives scores; mean, low and high are of the difference."""
    left_out: list[str]
    """What was scored of both and yet is not compared, and why."""
    notes: list[str]
    """What a reader of the differences must know: how images were paired, and what differs in how scores were made."""
    metrics: dict[str, Metric]
    """Those that tasks brought, by key."""


def compare(first: str | Path, second: str | Path, name: str | None = None) -> Compared:
    """Give the paired difference, first less second, of all that the probes of two runs were scored by.

    Both runs are scored over the images that they share, told by name and content: what makes an image easy or hard
    for both cancels. A null layer is the difference of the averages over the decoder layers, of those that both runs
    have where their last layers are the same, else of each run's own. Distances of sets (FID and the like) are
    compared where they are over the same images alone.

    Args:
        first: folder of a run.
        second: folder of the run that is taken from it.
        name: of the tables, where runs have several of a kind; by default those without a name of their own.

    Raises:
        InnerVisionError: a run has no scores, or the two have nothing in common.
    """
    names = [evaluations_of(run, name) for run in (first, second)]
    parts: list[pd.DataFrame] = []
    left_out: list[str] = []
    notes: dict[str, list[str]] = {}
    metrics: dict[str, Metric] = {}
    for table in [table for table in names[0] if table in names[1]]:
        facts = read_facts(first, table), read_facts(second, table)
        if other := _made_otherwise(*facts):
            left_out.append(f"{table}: made otherwise ({other})")
            continue
        tables = read_scores(first, table), read_scores(second, table)
        for target, experts in _other_experts(*facts).items():
            left_out.append(f"{table}: {target} (other experts: {experts})")
            tables = tables[0], tables[1][tables[1]["target"] != target]
        if any(each.empty for each in tables):
            continue
        pairs = _pair_images(tables, facts)
        left_out += [f"{table}: {reason}" for reason in pairs.left_out]
        metrics = {**facts[1].metrics, **facts[0].metrics, **metrics}
        found, lost = _compare(tables, pairs, metrics)
        parts += found
        left_out += [f"{table}: {reason}" for reason in lost]
        if found:
            for note in [*pairs.notes, *_differences_of_setup(*facts)]:
                notes.setdefault(note, []).append(table)
    if not parts:
        reasons = "; ".join(left_out) or "they were not scored by the same metrics on the same images"
        raise InnerVisionError(f"{first} and {second} cannot be compared: {reasons}")
    told = [f"{', '.join(evaluations)}: {note}" for note, evaluations in notes.items()]
    return Compared(pd.concat(parts, ignore_index=True), left_out, told, metrics)


def _made_otherwise(first: Facts, second: Facts) -> str:
    """Say what differs in how two runs were scored, apart from images and MLLMs; experts are told apart by target."""
    plans = [{**facts.plan, "model": facts.features} for facts in (first, second)]
    keys = [key for key in plans[0] if key in plans[1] and key not in MAY_DIFFER]
    return "; ".join(f"{key}: {plans[0][key]} and {plans[1][key]}" for key in keys if plans[0][key] != plans[1][key])


def _other_experts(first: Facts, second: Facts) -> dict[str, str]:
    """Name the experts of targets that are called the same and are not."""
    one, other = (dict(facts.plan.get("experts", {})) for facts in (first, second))
    return {name: f"{one[name]} and {other[name]}" for name in one if name in other and one[name] != other[name]}


def _differences_of_setup(first: Facts, second: Facts) -> Iterator[str]:
    """Say what differs in the machines and programs that two runs were scored with."""
    # nested names become one: {"dtype": {"mllm": …}} is "dtype of mllm"
    one, other = (pd.json_normalize(dict(facts.setup), sep=" of ").to_dict("records")[0] for facts in (first, second))
    for key in [*one, *(key for key in other if key not in one)]:
        values = [str(side.get(key, "not recorded")) for side in (one, other)]
        if one and other and values[0] != values[1]:
            yield f"{key}: {values[0]} and {values[1]}"


class _Pairs(NamedTuple):
    """Which images of two tables are the same."""

    images: set[str]
    complete: bool
    """Whether both tables are over these images alone."""
    left_out: list[str]
    notes: list[str]


def _pair_images(tables: tuple[pd.DataFrame, pd.DataFrame], facts: tuple[Facts, Facts]) -> _Pairs:
    """Pair images by name and by the hash of their content, as far as that is known."""
    one, other = (set(table["image"].unique()) for table in tables)
    named = one & other
    hashes = facts[0].images, facts[1].images
    unknown = {name for name in named if name not in hashes[0] or name not in hashes[1]}
    changed = sorted(name for name in named - unknown if hashes[0][name] != hashes[1][name])
    left_out, notes = [], []
    if changed:
        left_out.append(
            f"{len(changed):,} of {len(named):,} images of the same name have another content, as {changed[0]}"
        )
    elif named and one != other:
        alone = len(one ^ other)
        notes.append(f"{alone:,} images that one of the runs alone was scored on are left out")
    elif not named:
        left_out.append(f"no image of the one has the name of one of the other, as {min(one)} and {min(other)}")
    if unknown:
        notes.append(
            f"{len(unknown):,} images were paired by name alone, since the older scores do not tell their content"
        )
    return _Pairs(named - set(changed), one == other and not changed, left_out, notes)


def _compare(
    tables: tuple[pd.DataFrame, pd.DataFrame], pairs: _Pairs, metrics: Mapping[str, Metric]
) -> tuple[list[pd.DataFrame], list[str]]:
    """Give the differences of one evaluation, and what cannot be compared."""
    if not pairs.images:
        return [], []
    parts, left_out = [], []
    one, other = (table[(table["source"] == "probe") & table["image"].isin(pairs.images)] for table in tables)
    shared = set(one["metric"].unique()) & set(other["metric"].unique())
    if sets := {key for key in shared if find_metric(key, metrics).of_set and not pairs.complete}:
        shared -= sets
        left_out.append("distances of sets of other images")
    one, other = (table[table["metric"].isin(shared)] for table in (one, other))
    for target in in_order(set(one["target"].unique()) & set(other["target"].unique()), one["target"].unique()):
        sides = [table[table["target"] == target] for table in (one, other)]
        layers = [set(side["layer"].dropna()) for side in sides]
        if max(layers[0], default=0) == max(layers[1], default=0):
            sides = [side[side["layer"].isin(layers[0] & layers[1])] for side in sides]
        series = [{tuple(each.rows[SERIES].iloc[0]): each for each in jackknife(side)} for side in sides]
        for key in [key for key in series[0] if key in series[1]]:
            pair, metric = (series[0][key], series[1][key]), find_metric(key[SERIES.index("metric")], metrics)
            if pair[0].images != pair[1].images:
                left_out.append(f"{metric.name} of {target}, which lacks images of one run")
                continue
            parts.append(difference(*pair, share=metric.share))
    return [part for part in parts if len(part)], left_out
