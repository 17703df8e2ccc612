"""What was found, in sentences made from the tables by rule, and what speaks against it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from innervision.engine.gains import STILL_GAINS
from innervision.errors import few, listed, printable
from innervision.metrics.interval import FEWEST
from innervision.metrics.registry import Metric
from innervision.report.compare import Compared
from innervision.report.page.study import Studied, Study, of_metric
from innervision.report.tables import holds

FLOORS = {
    "shuffled": "the prediction for another image",
    "blank": "the prediction for a grey image",
    "mean": "the mean feature",
    "zero": "a feature of zeros",
}
"""What a sentence calls a floor."""

PERFECT = ("cosine", "token_cosine", "centred_cosine", "explained_variance")
"""Metrics by which the expert's own feature scores 1."""

WIDE = 100
"""Below so many images, a page warns that intervals are wide."""


class Standing(NamedTuple):
    """Where one run stands between floor and ceiling, by one metric."""

    label: str
    number: int
    """Of the run in the study."""
    score: Any
    """The row of `summarize` that speaks for the run: the average over its decoder layers, else its best layer."""
    best: Any
    """The row of the best layer."""
    floor: tuple[str, float] | None
    """The highest floor: its source and score."""
    ceiling: float | None
    below: list[str]
    """Floors that the score does not clear: the interval of the paired difference does not leave out 0."""
    known: bool
    """Whether there are floors, and intervals of the differences to them."""
    clear: int
    """Layers that clear every floor."""
    layers: int

    @property
    def verdict(self) -> str:
        """Say in a few words whether the score means anything."""
        if not self.known:
            return "no verdict: too few images" if self.floor else "no floor to compare with"
        return "does not beat every floor" if self.below else "beats every floor"


OPEN, FEW = "cannot be told apart", "cannot be judged"
"""Verdicts on two runs, beside `is better` and `is worse`."""


class Pair(NamedTuple):
    """The difference of the first run to another one."""

    first: str
    other: str
    """Their labels."""
    difference: str
    """With its interval."""
    verdict: str
    """On the first one."""

    def __str__(self) -> str:
        """Say it in a line."""
        told = {OPEN: f"the two {OPEN}", FEW: f"{FEW}: fewer than {FEWEST} images"}
        verdict = told.get(self.verdict, f"{self.first} {self.verdict}")
        return f"{self.first} less {self.other}: {self.difference}, {verdict}"


@dataclass
class Finding:
    """What was found of one target by one metric."""

    target: str
    key: str
    metric: Metric
    standings: list[Standing]
    pairs: list[Pair]
    """How the first run compares with each other one."""

    @property
    def differences(self) -> list[str]:
        """The same in words."""
        return [*map(str, self.pairs)]


def findings(study: Study) -> list[Finding]:
    """Say where each run stands, by the metrics that speak for each target; see `Study.headlines`."""
    return [
        Finding(target, key, study.metric(key), standings, list(_pairs(study, target, key)))
        for target in study.targets
        for key in study.headlines(target)
        if (standings := [each for n, run in enumerate(study.runs) if (each := _stand(study, run, n, target, key))])
    ]


def _stand(study: Study, run: Studied, number: int, target: str, key: str) -> Standing | None:
    metric = study.metric(key)
    rows = of_metric(run.scores, target, key)
    rows = rows[rows["group"].isna()]
    probe = rows[rows["source"] == "probe"]
    of_layers = probe[probe["layer"].notna()]
    if of_layers.empty:
        return None
    better = 1 if metric.higher_is_better else -1
    best = max(_lines(of_layers), key=lambda row: _rank(better * row.mean))
    average = next(iter(_lines(probe[probe["layer"].isna()])), None)
    score = best if average is None else average
    at = rows["layer"].isna() if average is not None else rows["layer"].isna() | (rows["layer"] == best.layer)
    levels = {row.source: row.mean for row in _lines(rows[at]) if row.source != "probe"}
    floors = {source: level for source, level in levels.items() if source in metric.floors and np.isfinite(level)}
    highest = max(floors.items(), key=lambda floor: better * floor[1], default=None)
    above = of_metric(run.floors, target, key)
    mine = above[above["layer"].isna() if average is not None else above["layer"] == best.layer]
    known = bool(len(mine)) and bool(mine["clear"].notna().all())
    below = [floor for floor in metric.floors if known and floor in set(mine.loc[~mine["clear"], "floor"])]
    ceiling = levels.get("expert", 1.0 if key in PERFECT else None)
    ceiling = ceiling if ceiling is not None and np.isfinite(ceiling) else None
    return Standing(
        run.label, number, score, best, highest, ceiling, below, known, int(of_layers["clear"].sum()), len(of_layers)
    )


def _lines(table: pd.DataFrame) -> list[Any]:
    """Give the rows of a table, with a field for each column."""
    return list(table.itertuples(index=False))


def _rank(value: float) -> float:
    return value if np.isfinite(value) else -np.inf


def _pairs(study: Study, target: str, key: str) -> Iterator[Pair]:
    first, metric = study.runs[0], study.metric(key)
    for other, run in enumerate(study.runs[1:], 1):
        found = study.pairs[0, other]
        if not isinstance(found, Compared):
            continue
        row = _average_difference(found, first, target, key)
        if row is None:
            continue
        shown = f"{_signed(metric, row.mean)} {_interval(metric, row, signed=True)}"
        if np.isnan(row.low):
            verdict = FEW
        elif row.low > 0 or row.high < 0:
            better = (row.mean > 0) == metric.higher_is_better
            verdict = "is better" if better else "is worse"
        else:
            verdict = OPEN
        yield Pair(first.label, run.label, shown, verdict)


def _average_difference(found: Compared, first: Studied, target: str, key: str) -> Any:
    rules = set(of_metric(first.scores, target, key)["protocol"])
    rows = of_metric(found.differences, target, key)
    rows = rows[rows["protocol"].isin(rules) & rows["group"].isna() & rows["layer"].isna()]
    return next(iter(_lines(rows)), None)


def _signed(metric: Metric, value: float) -> str:
    text = metric.format(value)
    return text if text.startswith("-") or not float(text.replace(",", "") or 0) else f"+{text}"


def _interval(metric: Metric, row: Any, *, signed: bool = False) -> str:
    if np.isnan(row.low):
        return "[no interval]"
    write = _signed if signed else Metric.format
    return f"[{write(metric, row.low)}, {write(metric, row.high)}]"


def tell(finding: Finding, standing: Standing) -> str:
    """Say in words where a run stands: score with interval, and `details`."""
    metric, score = finding.metric, standing.score
    where = at_layer(score.layer) if score.layer is not pd.NA else "on average over the decoder layers"
    numbers = f"{metric.name} {metric.format(score.mean)} {_interval(metric, score)}"
    return f"{standing.label}: {numbers} {where}. {details(finding, standing)}"


def details(finding: Finding, standing: Standing) -> str:
    """Say what belongs to a score: n, the best layer, floor, ceiling, and how many layers beat every floor."""
    write, score = finding.metric.format, standing.score
    parts = [f"n = {score.images:,} images"]
    if score.layer is pd.NA:
        parts.append(f"Best {at_layer(standing.best.layer)}: {write(standing.best.mean)}")
    if standing.floor:
        source, level = standing.floor
        parts.append(f"Floor {write(level)}: {FLOORS.get(source, source)}")
    if standing.ceiling is not None:
        parts.append(f"Ceiling {write(standing.ceiling)}")
    if standing.known:
        parts.append(f"{standing.clear} of {standing.layers} layers beat every floor")
    return f"{'. '.join(parts)}."


def headline(study: Study) -> str:
    """Say in a sentence or two what was measured."""
    kinds = {run.probe_kind or "" for run in study.runs}
    probes = f"{kinds.pop()} probes".strip() if len(kinds) == 1 else "probes"
    return (
        f"{probes[0].upper()}{probes[1:]} read the layers of {listed([run.label for run in study.runs])} and predict "
        "what frozen vision experts see in held-out images. Scores are averages over the decoder layers, where nothing "
        "else is said, with 95% intervals over the images."
    )


def in_short(study: Study, found: list[Finding]) -> list[tuple[str, str]]:
    """Say of each target what came out by its first metric: of the first run in numbers, and how the others stand.

    Returns:
        Targets, and sentences.
    """
    lines = []
    for target in study.targets:
        of_target = [finding for finding in found if finding.target == target][:1]
        for finding in of_target:
            numbers = [_numbers(finding.metric, each) for each in finding.standings if each.number == 0]
            parts = [*numbers, *_beaten(finding.standings), *_compared(finding)]
            lines.append((target, " ".join(f"{part}." for part in parts)))
    return lines


def _numbers(metric: Metric, standing: Standing) -> str:
    """Write the score of a run with all that it must be read by."""
    score = standing.score
    where = "" if score.layer is pd.NA else f" {at_layer(score.layer)}, its best,"
    beside = [] if metric.higher_is_better else ["lower is better"]
    beside += [f"floor {metric.format(standing.floor[1])}"] if standing.floor else []
    beside += [f"ceiling {metric.format(standing.ceiling)}"] if standing.ceiling is not None else []
    numbers = f"{metric.name} {metric.format(score.mean)} {_interval(metric, score)}"
    return f"{standing.label} has{where} {numbers} ({', '.join([*beside, f'n = {score.images:,} images'])})"


def _beaten(standings: list[Standing]) -> Iterator[str]:
    """Say which runs beat every floor, which do not, and of which that is not known."""
    good = [each.label for each in standings if each.known and not each.below]
    poor = [each.label for each in standings if each.below]
    unknown = [each.label for each in standings if not each.known]
    several = len(standings) if len(standings) > 1 else None
    if good:
        yield (
            "All runs beat every floor" if len(good) == several else f"{listed(good)} {_verb(good, 'beat')} every floor"
        )
    if poor:
        no = f"{listed(poor)} {'do' if len(poor) > 1 else 'does'} not beat every floor"
        yield "No run beats every floor" if len(poor) == several else no
    if unknown:
        yield f"It is not known whether {listed(unknown)} {_verb(unknown, 'beat')} every floor"


def _verb(who: list[str], verb: str) -> str:
    return verb if len(who) > 1 else f"{verb}s"


def _compared(finding: Finding) -> Iterator[str]:
    """Say how the first run compares with the others."""
    words = {
        "is better": "is better than",
        "is worse": "is worse than",
        OPEN: "cannot be told apart from",
        FEW: "cannot be compared, over so few images, with",
    }
    parts = [
        f"{text} {listed(labels)}"
        for verdict, text in words.items()
        if (labels := [each.other for each in finding.pairs if each.verdict == verdict])
    ]
    if parts:
        yield f"{finding.pairs[0].first} {listed(parts)}"


def cautions(study: Study, found: list[Finding]) -> list[str]:
    """Say what speaks against the findings."""
    parts = [*_of_findings(found), *_of_scores(study), *_of_sizes(study), *_of_runs(study), *_of_pairs(study)]
    return [printable(text) for text in parts]


def _of_findings(found: list[Finding]) -> Iterator[str]:
    for finding in found:
        for standing in finding.standings:
            if standing.below:
                names = listed([FLOORS.get(floor, floor) for floor in standing.below])
                yield (
                    f"{finding.target}, {finding.metric.name}: {standing.label} does not beat {names}; what it scores "
                    "may have nothing to do with what its layers hold."
                )
            elif standing.known and standing.clear < standing.layers:
                yield (
                    f"{finding.target}, {finding.metric.name}: {standing.layers - standing.clear} of "
                    f"{standing.layers} layers of {standing.label} do not beat every floor."
                )


def _of_scores(study: Study) -> Iterator[str]:
    rows = pd.concat([run.scores[run.scores["group"].isna()].assign(run=run.label) for run in study.runs])
    probe = rows[rows["source"] == "probe"]
    most = probe.groupby("evaluation", sort=False)["images"].max()
    for bound, what in (
        (FEWEST, f"are too few for intervals, which need {FEWEST}"),
        (WIDE, "are few: intervals are wide, and scores within one another’s interval are not known to differ"),
    ):
        scored = [f"{count:,} images ({evaluation})" for evaluation, count in most.items() if count < bound]
        most = most[most >= bound]
        if scored:
            yield f"{listed(scored)} {what}."
    for (target, key), part in probe[~holds(probe)].groupby(["target", "metric"], sort=False):
        worst = part.sort_values("rare_groups").iloc[-1]
        yield (
            f"{target}, {study.metric(str(key)).name}: {worst.rare_groups} of {worst.groups} classes are in fewer than "
            f"{FEWEST} images, so its intervals do not hold."
        )
    for (label, target), part in probe[~np.isfinite(probe["mean"])].groupby(["run", "target"], sort=False):
        yield f"{target}: {len(part)} scores of {label} are not finite."


def _of_sizes(study: Study) -> Iterator[str]:
    for target in study.targets:
        rises = [
            f"{run.label} +{gain.gain:.3f} {at_layer(gain.layer)} from {gain.before:,} to {gain.after:,} "
            f"images ({gain.rising} of {gain.layers} layers rose by more than {STILL_GAINS})"
            for run in study.runs
            if (gain := (run.gains or {}).get(target)) and gain.gain > STILL_GAINS
        ]
        if rises:
            yield (
                f"{target}: more training images would help. The last doubling of them raised the explained variance "
                f"of those held out: {'; '.join(rises)}."
            )


def _of_runs(study: Study) -> Iterator[str]:
    for run in study.runs:
        if run.gains is None and run.probe_kind not in ("ridge", "pooled", None):
            yield (
                f"The probes of {run.label} ({run.probe_kind}) are trained: a low score may be that of their "
                "training, and another seed gives another score, which no interval here holds."
            )
        images = run.record.get("images")
        trained_on = images.get("files") if isinstance(images, dict) else None
        for name, facts in run.scored.facts.items():
            if trained_on and facts.plan.get("files") == trained_on:
                yield f"{name}: {run.label} was scored on the images that its probes were trained on."
            if lost := len(facts.bad_images):
                yield f"{name}: {_left_out(lost)} left out of the scores of {run.label} ({few(facts.bad_images)})."
        if run.bad_images:
            yield f"{_left_out(len(run.bad_images))} left out of the training of {run.label} ({few(run.bad_images)})."
        if run.scored.protocol != "standard":
            yield f"{run.label} follows the protocol {run.scored.protocol}, which repeats faults of the original code."
    if all(run.settings.get("random_weights", "none") == "none" for run in study.runs):
        yield (
            "None of these runs was made with --random-weights: unless one of the models is itself untrained, what a "
            "network scores that has learnt nothing is not shown."
        )


def _of_pairs(study: Study) -> Iterator[str]:
    for (one, other), found in study.pairs.items():
        names = f"{study.runs[one].label} and {study.runs[other].label}"
        if isinstance(found, str):
            yield f"{names} are not compared: {found}."
            continue
        yield from (f"{names}, not compared: {line}." for line in found.left_out)
        yield from (f"{names}: {line}." for line in found.notes)


def _left_out(count: int) -> str:
    return "1 image was" if count == 1 else f"{count:,} images were"


def at_layer(layer: int) -> str:
    """Say where in a model: `in the vision stage`, `at layer 3`."""
    return "in the vision stage" if layer == -1 else f"at layer {layer}"
