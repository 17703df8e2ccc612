"""The card of the world's models: how each was made and how good it is, beside what needs no model.

    python -m tools.world card

measures all of it again on held-out scenes, and writes card.md and card.json beside the models.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tools.world.build import PARTS

from innervision.checkpoints.identity import fingerprint
from innervision.errors import InnerVisionError
from innervision.files import atomic_write


@dataclass(frozen=True)
class Figure:
    """A number of a model, and what comes out without one."""

    what: str
    """With the unit, such as "pairs ordered right, %"."""
    value: float
    baselines: dict[str, float] = field(default_factory=dict)
    """What needs no (or no trained) model -> the same number of it."""
    count: int = 0
    """How many held-out images, pairs or objects it was measured on."""


@dataclass(frozen=True)
class Section:
    """What the card says of one model."""

    model: str
    """The name of its folder."""
    made: str
    """How it was made: class, size, data, losses; Markdown."""
    figures: list[Figure]


def write_card(models: Path, *, progress: bool = True) -> Path:
    """Measure the models in a folder and write `card.md` and `card.json` there.

    Returns:
        The path of card.md.

    Raises:
        InnerVisionError: the folder holds none of the models, or one cannot be loaded.
    """
    parts = [part for part in PARTS.values() if all((models / model).is_dir() for model in part.models)]
    if not parts:
        raise InnerVisionError(f"{models} holds no finished part of the world: run python -m tools.world build first")
    record = json.loads((models / "build.json").read_text(encoding="utf-8")) if (models / "build.json").exists() else {}
    entries = []
    for part in parts:
        for section in part.load().measure(models, progress=progress):
            folder = models / section.model
            facts = {
                "megabytes": round(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6, 2),
                "fingerprint": fingerprint(folder),
                "build": record.get(section.model, {}),
            }
            entries.append(asdict(section) | facts)
    with atomic_write(models / "card.json") as path:
        path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    with atomic_write(models / "card.md") as path:
        path.write_text(_markdown(entries), encoding="utf-8")
    return models / "card.md"


def _markdown(entries: list[dict[str, Any]]) -> str:
    total = sum(entry["megabytes"] for entry in entries)
    lines = [
        "# The models of the embedded world",
        "",
        f"{total:.1f} MB in all, half precision. Made by `python -m tools.world build`; the figures are from scenes",
        "that no training saw, measured by `python -m tools.world card`.",
    ]
    for entry in entries:
        build = entry["build"]
        spent = f", {build['cpu_seconds'] / 60:.0f} CPU minutes of training" if build else ""
        lines += ["", f"## world/{entry['model']}", ""]
        lines += [entry["made"], "", f"{entry['megabytes']:.1f} MB, {entry['fingerprint']}{spent}.", ""]
        lines += ["| figure | model | without | of |", "|---|---:|---|---:|"]
        for figure in entry["figures"]:
            without = "; ".join(f"{name}: {value:.4g}" for name, value in figure["baselines"].items())
            lines.append(f"| {figure['what']} | **{figure['value']:.4g}** | {without} | {figure['count'] or ''} |")
    return "\n".join(lines) + "\n"
