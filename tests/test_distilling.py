"""How the study of distilling joins the seeds of its models."""

import pandas as pd
from benchmarks.distilling.tables import over_seeds


def row(seed: int, layer: int | None, mean: float, half: float = 0.05) -> dict[str, object]:
    score = {
        "comparison": "distilled - tuned",
        "probe": "exact",
        "target": "depth",
        "metric": "centred_cosine",
        "layer": layer,
        "seed": seed,
    }
    return score | {"mean": mean, "low": mean - half, "high": mean + half}


def test_intervals_reach_over_all_seeds_and_are_counted_by_side() -> None:
    rows = [row(0, 4, 0.2), row(1, 4, 0.3), row(2, 4, 0.01), row(0, 5, -0.1), row(1, 5, 0.1)]
    rows += [row(0, None, 9.0)]  # the average over layers
    at, after = over_seeds(pd.DataFrame(rows)).to_dict("records")
    assert (at["layer"], at["loss"], after["layer"], after["loss"]) == (4, "loss", 5, "")
    assert [round(at[end], 6) for end in ("difference", "low", "high")] == [0.17, -0.04, 0.35]
    assert [at[count] for count in ("above", "below", "seeds")] == [2, 0, 3]
    assert [after[count] for count in ("above", "below", "seeds")] == [1, 1, 2]
