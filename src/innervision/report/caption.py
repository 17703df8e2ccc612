"""What must stand below a figure of curves: what is drawn, over how many images, with which intervals and protocol."""

from collections.abc import Callable, Sequence

import pandas as pd

from innervision.errors import listed
from innervision.metrics.registry import Metric
from innervision.report.panels import FLOORS, LEVELS, Curve
from innervision.report.tables import count_images


def caption(
    curves: Sequence[Curve],
    rows: Sequence[dict[str, str]],
    metric: Callable[[str], Metric],
    protocols: Sequence[str],
) -> str:
    """Write the caption of a figure.

    Args:
        curves: the lines.
        rows: of panels, by target its metric.
        metric: gives a metric by its key in the tables.
        protocols: of the runs.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row.values()))
    targets = list(dict.fromkeys(target for row in rows for target in row))
    drawn = pd.concat([curve.summary[curve.summary["metric"].isin(keys)] for curve in curves])
    drawn = drawn[drawn["target"].isin(targets)]
    said = []
    for key in keys:
        known = metric(key)
        over = count_images(drawn[(drawn["metric"] == key) & (drawn["source"] == "probe")]["images"])
        better = "higher" if known.higher_is_better else "lower"
        said.append(f"{known.name} over {over} images ({known.meaning}; {better} is better)")
    found = set(drawn["source"])
    parts = [
        f"Scores by layer of probes for {listed(targets)}: {'; '.join(said)}.",
        f"Lines: {listed([curve.label for curve in curves])}.",
    ]
    if any(not curve.seeds for curve in curves):
        parts.append("Bands and bars: 95% intervals over the images; they tell nothing of other seeds.")
    for curve in curves:
        if curve.seeds:
            seeds = ", ".join(map(str, curve.seeds))
            parts.append(f"{curve.label}: mean of the seeds {seeds}; band: from the lowest to the highest.")
    if floors := [name for source, (_, name) in (FLOORS | LEVELS).items() if source in found]:
        parts.append(f"Thin lines: {'; '.join(floors)}.")
    rules = sorted(set(drawn["protocol"]))
    made, scored = " and ".join(sorted(set(protocols))), " and ".join(rules)
    parts.append(f"Predictions by the {made} protocol, scored by the {scored} rule.")
    return " ".join(parts)
