"""Runs of one setting that differ by their seed alone: they belong together."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from innervision.engine.run import FREE_TO_CHANGE
from innervision.report.tables import KEYS


class Group(NamedTuple):
    """Runs that become one line."""

    members: list[int]
    """Their numbers."""
    seeds: list[int]
    """Their seeds; empty where there is one run."""


def of_one_setting(settings: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Group runs whose settings are the same but for the seed and what leaves results alone; all seeds must differ.

    Args:
        settings: of the runs, as run.yaml has them.
    """
    same: dict[str, list[int]] = {}
    for number, each in enumerate(settings):
        fixed = {name: value for name, value in each.items() if name != "seed" and name not in FREE_TO_CHANGE}
        same.setdefault(repr(sorted(fixed.items())), []).append(number)
    groups = []
    for members in same.values():
        seeds = [settings[number].get("seed") for number in members]
        known = [seed for seed in seeds if isinstance(seed, int)]
        if len(members) > 1 and len(set(known)) == len(members):
            groups.append(Group(members, known))
        else:
            groups += [Group([number], []) for number in members]
    return sorted(groups)


def join_seeds(summaries: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Join rows of `summarize` of several seeds: `mean` is that of the seeds, `low` and `high` the lowest and highest.

    Scores that a seed lacks are left out.
    """
    rows = pd.concat(summaries, ignore_index=True)
    by_score = rows.groupby([*KEYS, "evaluation"], dropna=False, sort=False)
    joined = by_score.agg(
        count=("mean", "size"),
        low=("mean", "min"),
        high=("mean", "max"),
        mean=("mean", lambda means: means.mean(skipna=False)),
        images=("images", "min"),
    ).reset_index()
    joined = joined[joined["count"] == len(summaries)].drop(columns="count")
    return joined.assign(group=None, groups=0, rare_groups=0)
