"""How much one run scores above another on the same images."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from innervision.errors import InnerVisionError
from innervision.report.resample import SERIES, interval_of, resample
from innervision.report.tables import in_order, read_scores

OF_SETS = ("fid", "kid", "frechet", "kernel")
"""Metrics of a whole set of images: a part of the images does not have its own."""

MAY_DIFFER = {"probes", "files", "num_images", "batch_size", "save_images"}
"""What two evaluations may have been made with, each its own, and be compared over the images that both have."""


class Comparison(NamedTuple):
    """What two runs have in common."""

    differences: pd.DataFrame
    """As `summarize` gives scores; mean, low and high are of the difference."""
    left_out: list[str]
    """What was scored of both and yet cannot be compared, and why."""


def compare(first: Path, second: Path) -> Comparison:
    """Give the paired difference, first less second, of all that the probes of two runs were scored by.

    Both runs are scored over the images that they share, and over the same resamples of them: what makes an image easy
    or hard for both cancels. A null layer is the difference of the averages over the decoder layers, of those that both
    runs have where their last layers are the same, else of each run's own. Distances of sets (FID and the like) are
    compared where they are over the same images alone.

    Raises:
        InnerVisionError: a run has no scores, or the two have nothing in common.
    """
    names = [{path.stem for path in (run / "scores").glob("*.parquet")} for run in (first, second)]
    if not all(names):
        read_scores(second if names[0] else first)  # says what is missing
    parts, left_out = [], []
    for name in in_order(names[0] & names[1], ["similarity"]):
        if other := _made_otherwise(first, second, name):
            left_out.append(f"{name}: made otherwise ({other})")
            continue
        found, lost = _compare(first, second, name)
        parts += found
        left_out += [f"{name}: {reason}" for reason in lost]
    if not parts:
        reasons = "; ".join(left_out) or "they were not scored by the same metrics on the same images"
        raise InnerVisionError(f"{first} and {second} cannot be compared: {reasons}")
    return Comparison(pd.concat(parts, ignore_index=True), left_out)


def _made_otherwise(first: Path, second: Path, evaluation: str) -> str:
    """Say what differs in how two runs were scored, apart from images and models."""
    plans = [_plan(run / f"scores/{evaluation}.json") for run in (first, second)]
    keys = [key for key in plans[0] if key in plans[1] and key not in MAY_DIFFER]
    return "; ".join(f"{key}: {plans[0][key]} and {plans[1][key]}" for key in keys if plans[0][key] != plans[1][key])


def _plan(path: Path) -> Mapping[str, Any]:
    """Read how scores were made: the plan, and which model's features images were compared in."""
    if not path.exists():
        return {}
    facts = json.loads(path.read_text())
    return {**facts.get("plan", {}), "model": facts.get("features")}


def _compare(first: Path, second: Path, evaluation: str) -> tuple[list[pd.DataFrame], list[str]]:
    tables = [read_scores(run, evaluation) for run in (first, second)]
    tables = [scores[scores["source"] == "probe"].astype({"metric": str, "target": str}) for scores in tables]
    parts, left_out = [], []
    for target in [name for name in tables[0]["target"].unique() if name in set(tables[1]["target"])]:
        one, other = (scores[scores["target"] == target] for scores in tables)
        images = set(one["image"]) & set(other["image"])
        metrics = set(one["metric"]) & set(other["metric"])
        of_sets = {metric for metric in metrics if metric.partition(":")[0] in OF_SETS}
        if of_sets and set(one["image"]) != set(other["image"]):
            metrics -= of_sets
            left_out.append("distances of sets of other images")
        if one["layer"].max() == other["layer"].max():
            layers = set(one["layer"]) & set(other["layer"])
            one, other = (scores[scores["layer"].isin(layers)] for scores in (one, other))
        one, other = (scores[scores["metric"].isin(metrics)] for scores in (one, other))
        if not images or one.empty or other.empty:
            continue
        found = [resample(scores, images) for scores in (one, other)]
        keys = [*SERIES, "layer", "group", "images"]  # the same number of images: the same resamples of them
        numbered = [rows.assign(number=range(len(rows))) for rows, _ in found]
        both = numbered[0].merge(numbered[1], on=keys, suffixes=("", "_second"))
        draws = found[0].draws[:, both["number"]] - found[1].draws[:, both["number_second"]]
        low, high = interval_of(draws[1:])
        spread = (both["images"] > 1).to_numpy()
        rows = both[keys].assign(mean=draws[0], low=np.where(spread, low, np.nan), high=np.where(spread, high, np.nan))
        parts.append(rows[rows["group"].isna() | rows["mean"].notna()])
    return [part for part in parts if len(part)], left_out
