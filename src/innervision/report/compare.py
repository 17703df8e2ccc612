"""How much one run scores above another on the same images."""

from pathlib import Path

import numpy as np
import pandas as pd

from innervision.errors import InnerVisionError
from innervision.report.resample import SERIES, interval_of, resample
from innervision.report.tables import read_scores


def compare(first: Path, second: Path) -> pd.DataFrame:
    """Give the paired difference, first less second, of all that the probes of two runs were scored by.

    Both runs are scored over the images that they share, and over the same resamples of them: what makes an image easy
    or hard for both cancels.

    Returns:
        As `summarize` does; mean, low and high are of the difference. A null layer is the difference of the averages
        over each run's decoder layers.

    Raises:
        InnerVisionError: a run has no scores, or the two have nothing in common.
    """
    names = [{path.stem for path in (run / "scores").glob("*.parquet")} for run in (first, second)]
    if not all(names):
        read_scores(second if names[0] else first)  # says what is missing
    parts = [_compare(first, second, name) for name in sorted(names[0] & names[1])]
    parts = [part for part in parts if len(part)]
    if not parts:
        raise InnerVisionError(f"{first} and {second} were not scored by the same metrics on the same images")
    return pd.concat(parts, ignore_index=True)


def _compare(first: Path, second: Path, evaluation: str) -> pd.DataFrame:
    tables = [read_scores(run, evaluation) for run in (first, second)]
    tables = [scores[scores["source"] == "probe"] for scores in tables]
    parts = []
    for target in set(tables[0]["target"]) & set(tables[1]["target"]):
        of_target = [scores[scores["target"] == target] for scores in tables]
        images = set(of_target[0]["image"]) & set(of_target[1]["image"])
        if not images:
            continue
        found = [resample(scores, images) for scores in of_target]
        keys = [*SERIES, "layer", "group", "images"]  # the same number of images: the same resamples of them
        numbered = [rows.assign(number=range(len(rows))) for rows, _ in found]
        both = numbered[0].merge(numbered[1], on=keys, suffixes=("", "_second"))
        draws = found[0].draws[:, both["number"]] - found[1].draws[:, both["number_second"]]
        low, high = interval_of(draws[1:])
        spread = (both["images"] > 1).to_numpy()
        rows = both[keys].assign(mean=draws[0], low=np.where(spread, low, np.nan), high=np.where(spread, high, np.nan))
        parts.append(rows[rows["group"].isna() | rows["mean"].notna()])
    return pd.concat(parts) if parts else pd.DataFrame()
