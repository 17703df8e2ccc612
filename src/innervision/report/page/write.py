"""Writes the page: one HTML file that opens from a disk, without a network, and runs no code but its own."""

import base64
import hashlib
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import plotly
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from innervision import __version__
from innervision.config import ProbeSettings, TrainSettings
from innervision.errors import InnerVisionError, listed, printable, require
from innervision.files import atomic_write
from innervision.report.duration import duration
from innervision.report.page.data import all_scores, page_data
from innervision.report.page.explorer import explorer
from innervision.report.page.findings import (
    Finding,
    Standing,
    cautions,
    details,
    findings,
    headline,
    in_short,
    tell,
)
from innervision.report.page.study import Studied, Study, read_study

LARGEST = 8_000_000
"""Bytes of a page, at most."""
IMAGES = 12
"""In the explorer, of all targets together."""
SCRIPTS = ("base.js", "curves.js", "explorer.js", "tables.js")


def write_page(
    runs: Sequence[str | Path], out: str | Path, *, labels: Sequence[str] | None = None, images: int = IMAGES
) -> Path:
    """Write the report of one or several scored runs as one HTML page.

    The first run is the one that is spoken of first, that others are compared with, and whose scores choose the images
    of the explorer. Those need pictures that the runs have kept (see `innervision.engine.pictures`); no model is
    loaded.

    Args:
        runs: folders of scored runs, seven at most.
        out: the page, such as study.html.
        labels: one for each run; by default the names of the MLLMs, with the folders where these are not enough.
        images: in the explorer, of all targets together.

    Returns:
        The path of the page, of 8 MB at most.

    Raises:
        InnerVisionError: a run or its scores are missing or cannot be read, the page would be too large, or it cannot
            be written.
    """
    check_out(out)
    out = Path(out)
    study = read_study(runs, labels)
    text = render(study, images)
    with atomic_write(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out


def render(study: Study, images: int = IMAGES) -> str:
    """Give the page as text. See `write_page`."""
    library = get_plotlyjs().replace("</script", "<\\/script")
    own = "\n".join(_asset(name) for name in SCRIPTS)
    found = findings(study)
    data = {**page_data(study), "explorer": [], "parquet": all_scores(study)}
    environment = Environment(
        loader=PackageLoader("innervision.report", "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    template = environment.get_template("page.html.j2")

    def write(data: Mapping[str, Any]) -> str:
        return template.render(
            version=__version__,
            plotly_version=plotly.__version__,
            labels=[run.label for run in study.runs],
            title=f"What {listed([run.label for run in study.runs])} {'see' if len(study.runs) > 1 else 'sees'}",
            headline=printable(headline(study)),
            in_short=[(printable(target), printable(text)) for target, text in in_short(study, found)],
            cards=[_card(finding) for finding in found],
            cautions=cautions(study, found),
            provenance=[_provenance(run) for run in study.runs],
            style=Markup(_asset("page.css")),
            library=Markup(library),
            own=Markup(own),
            hashes=" ".join(f"'sha256-{_digest(script)}'" for script in (library, own)),
            data=Markup(_json(data)),
            explored=bool(data["explorer"]),
            images=images,
        )

    room = LARGEST - len(write(data).encode()) - 10_000
    data["explorer"] = explorer(study, images, room)
    text = write(data)
    require(len(text.encode()) <= LARGEST, f"the page would have more than {LARGEST:,} bytes: give fewer runs")
    return text


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """Write JSON that no markup can be found in, for a script element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _card(finding: Finding) -> dict[str, Any]:
    """Give what a card says of a finding: sentences, and places on a bar from the worst to the best score."""
    ends = [end for standing in finding.standings for end in _ends(standing)]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    better = finding.metric.higher_is_better

    def place(value: float) -> float:
        share = (value - low) / span
        return round(100 * (share if better else 1 - share), 2)

    return {
        "target": printable(finding.target),
        "metric": printable(finding.metric.name),
        "meaning": printable(finding.metric.meaning),
        "better": "higher is better" if better else "lower is better",
        "standings": [_bar(finding, standing, place) for standing in finding.standings],
        "differences": [printable(text) for text in finding.differences],
    }


def _ends(standing: Standing) -> Iterator[float]:
    score = standing.score
    levels = [score.mean, score.low, score.high, standing.floor[1] if standing.floor else None, standing.ceiling]
    finite = [float(value) for value in levels if value is not None and math.isfinite(value)]
    yield from finite or [0.0]


def _bar(finding: Finding, standing: Standing, place: Any) -> dict[str, Any]:
    score = standing.score
    known = math.isfinite(score.low)
    ends = sorted([place(score.low), place(score.high)]) if known else None
    return {
        "label": standing.label,
        "number": standing.number,
        "text": printable(tell(finding, standing)),
        "verdict": standing.verdict,
        "good": standing.known and not standing.below,
        "score": finding.metric.format(score.mean),
        "interval": f"[{finding.metric.format(score.low)}, {finding.metric.format(score.high)}]" if known else "",
        "at": place(score.mean) if math.isfinite(score.mean) else None,
        "from": ends[0] if ends else None,
        "width": round(ends[1] - ends[0], 2) if ends else None,
        "floor": place(standing.floor[1]) if standing.floor else None,
        "ceiling": place(standing.ceiling) if standing.ceiling is not None else None,
        "more": printable(details(finding, standing)),
    }


def _provenance(run: Studied) -> dict[str, Any]:
    """Give what the page says of how a run and its scores came about."""
    record = run.record
    return {
        "label": run.label,
        "folder": printable(str(run.scored.path)),
        "commands": [_train_command(run), *_evaluate_commands(run)],
        "tables": [
            ("Settings", _flat(run.settings)),
            ("Models", _flat({"mllm": record.get("mllm") or {}, **(record.get("experts") or {})})),
            ("Training", _training(run)),
            ("Trained on", _flat(record.get("setup") or {})),
            *((f"Scores: {printable(name)}", _scoring(run, name)) for name in run.scored.facts),
        ],
        "bad": [(printable(str(name)), printable(str(why))) for name, why in run.bad_images.items()],
    }


def _training(run: Studied) -> list[tuple[str, str]]:
    files = sorted((run.scored.path / "probes").glob("*.safetensors"))
    told = {"took": duration(run.record.get("took")), "written": {path.stem: _written(path) for path in files}}
    return _flat({**{name: run.record.get(name) for name in ("images", "parameters", "processes")}, **told})


def _scoring(run: Studied, name: str) -> list[tuple[str, str]]:
    facts = run.scored.facts[name]
    table = _written(run.scored.path / "scores" / f"{name}.parquet")
    told = {"took": duration(facts.took), "written": table, "plan": facts.plan, "setup": facts.setup}
    return _flat({**told, "images left out": facts.bad_images or "none"})


def _written(path: Path) -> str:
    """Say when a file was written; of one that was copied, when that was."""
    return f"{datetime.fromtimestamp(path.stat().st_mtime, UTC):%Y-%m-%d %H:%M} UTC"


def _flat(content: Any, before: str = "") -> list[tuple[str, str]]:
    """Write nested settings as lines of a name and a text."""
    if not isinstance(content, Mapping):
        return [(printable(before), printable(str(content)))]
    return [line for key, value in content.items() for line in _flat(value, f"{before}.{key}" if before else str(key))]


def _train_command(run: Studied) -> str:
    """Write the command that trains such a run, from its settings: those that are not the defaults."""
    words = ["innervision", "train"]
    words += _options(run.settings, TrainSettings)
    return printable(shlex.join(words))


def _options(settings: Mapping[str, Any], kind: type, before: str = "--") -> Iterator[str]:
    for field in fields(kind):
        if field.name not in settings:
            continue
        value = settings[field.name]
        if field.type is ProbeSettings and isinstance(value, Mapping):
            yield from _options(value, ProbeSettings, "--probe.")
        elif value != (field.default if field.default is not MISSING else None) and value != {}:
            name = field.name if before == "--probe." else field.name.replace("_", "-")
            yield from (f"{before}{name}", str(value).lower() if isinstance(value, bool) else str(value))


def _evaluate_commands(run: Studied) -> Iterator[str]:
    """Write the commands that score such a run, as far as the scores tell their settings."""
    for name, facts in run.scored.facts.items():
        words = ["innervision", "evaluate", name, str(run.scored.path)]
        for key, value in facts.settings.items():
            if value is not None and not isinstance(value, Mapping | list):
                words += [f"--{key.replace('_', '-')}", str(value).lower() if isinstance(value, bool) else str(value)]
        known = shlex.join(words)
        yield printable(known if facts.settings else f"{known} …   (its options were not recorded)")


def check_out(out: str | Path) -> None:
    """Refuse a path that no page can be written to, before anything is made.

    Raises:
        InnerVisionError: it is a folder.
    """
    if Path(out).is_dir():
        raise InnerVisionError(f"{out} is a folder: name the page to write, as in {Path(out) / 'study.html'}")
