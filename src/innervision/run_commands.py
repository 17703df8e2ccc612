"""Commands that read, draw and share runs. Heavy imports wait until one runs; `picture` alone needs torch."""

import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

from innervision.config import TrainSettings, split_names
from innervision.errors import InnerVisionError, require
from innervision.terminal import show, tell


def tell_models(run: Path, settings: TrainSettings) -> None:
    """Say which models a run names before they are loaded, since it may come from elsewhere."""
    tell(f"{run}/run.yaml names the models: {settings.mllm} and the experts {settings.targets}")


@dataclass
class Show:
    """What is shown."""

    runs: list[str]
    """Runs, or folders that hold runs; a run may be hf:USER/REPO."""
    _: KW_ONLY
    table: bool = False
    """Show all layers, metrics and groups of the scores, not the best layers alone."""


def show_runs(call: Show) -> None:
    """List what of runs is done and what is missing; of a run that is named itself, show the scores as well."""
    from innervision.hub.fetch import locate
    from innervision.report.files import tables_of
    from innervision.report.overview import LEGEND, overview_text
    from innervision.report.status import find_runs, format_status, read_status
    from innervision.report.tables import tabulate

    named = {name: locate(name) for name in call.runs}
    found = [(name if run == place else str(run), run) for name, place in named.items() for run in find_runs(place)]
    show(format_status([read_status(run)._replace(run=name) for name, run in found]))
    tables = [(name, run, table) for name, run in found if name in named for table in tables_of(run)]
    for name, run, table in tables:
        text = tabulate(run, table).text if call.table else overview_text(run, table)
        show(f"\n--- {name}: {table} ---\n\n{text}")
    if tables and not call.table:
        show(f"\n{LEGEND}")


@dataclass
class Plot:
    """What is drawn, and how it looks."""

    runs: list[str]
    """Scored runs, each its folder or hf:USER/REPO; each becomes a line, those that differ by their seed alone one."""
    _: KW_ONLY
    out: str
    """Where the figure goes; the suffix decides the format (.png, .pdf, .svg …); without one both PNG and PDF."""
    metrics: str | None = None
    """Scores to draw, one row of panels each, such as cosine,accuracy; by default what the runs have. images = what
    exact probes explain of the images held out, over the number of images seen."""
    targets: str | None = None
    """Targets to draw, in this order, with commas; by default all."""
    labels: str | None = None
    """Names of the lines, with commas; by default the MLLMs."""
    name: str | None = None
    """Which scores, where a run has several of a kind: those of this name."""
    style: Literal["screen", "paper"] = "screen"
    """paper: as wide as one or two columns of text, with letters to match."""
    size: str | None = None
    """WIDTHxHEIGHT in inches, such as 6.9x3; by default as large as the panels need."""


def plot(call: Plot) -> None:
    """Draw the curves of one or several runs by layer, and say what must stand below the figure."""
    from innervision.hub.fetch import locate_run

    runs = [locate_run(run) for run in call.runs]
    metrics, targets, labels = map(_split, (call.metrics, call.targets, call.labels))
    size = None if call.size is None else _parse_size(call.size)
    from innervision.report.figures import draw_curves, write_figure
    from innervision.report.sample_size import sample_size_figure

    if metrics and "images" in metrics:
        require(metrics == ["images"], "images is a figure of its own: ask for it alone")
        figure, caption = sample_size_figure(runs, labels, targets=targets, style=call.style, size=size), ""
    else:
        figure, caption = draw_curves(
            runs, metrics, labels, targets=targets, name=call.name, style=call.style, size=size
        )
    for path in write_figure(figure, call.out):
        show(path)
    if caption:
        show(f"\n{fill(caption, 120)}")


def _split(names: str | None) -> list[str] | None:
    return None if names is None else split_names(names)


def _parse_size(text: str) -> tuple[float, float]:
    """Read WIDTHxHEIGHT in inches.

    Raises:
        InnerVisionError: it is something else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)", text)
    width, height = (float(found[1]), float(found[2])) if found else (0.0, 0.0)
    require(1 <= width <= 50 and 1 <= height <= 50, f"size={text!r} is not WIDTHxHEIGHT in inches, such as 6.9x3")
    return width, height


@dataclass
class Compare:
    """The two runs."""

    run: str
    """A scored run: its folder, or hf:USER/REPO."""
    other: str
    """The run that is taken from it."""
    _: KW_ONLY
    name: str | None = None
    """Which scores, where a run has several of a kind: those of this name."""


def compare(call: Compare) -> None:
    """Say how much one run scores above another on the same images, layer by layer."""
    from innervision.hub.fetch import locate_run

    runs = locate_run(call.run), locate_run(call.other)
    from innervision.report.compare import compare
    from innervision.report.tables import format_differences

    found = compare(*runs, call.name)
    show(f"{call.run} less {call.other}, over the images that both have\n")
    show(format_differences(found.differences, found.differences["target"].unique(), found.metrics))
    for line in found.left_out:
        show(f"not compared: {line}")
    for line in found.notes:
        show(f"note: {line}")


@dataclass
class Picture:
    """What is drawn of what."""

    run: str
    """A trained run: its folder, or hf:USER/REPO."""
    _: KW_ONLY
    image: str
    """The photograph."""
    depth: str | None = None
    """What is known of its depth, shown beside it: a 16-bit grey PNG, larger = farther, 0 = not known."""
    out: str | None = None
    """Where the picture goes (PNG, PDF, SVG …); by default PHOTOGRAPH-layers.png in this folder."""
    targets: str | None = None
    """Names of the run's targets, with commas; by default all that can be drawn."""
    device: str | None = None
    """By default the accelerator, where there is one."""
    trust_remote_code: bool = False
    """Run model code that comes with the MLLM's checkpoint. Only for sources that you trust."""


def picture(call: Picture) -> None:
    """Draw what each layer shows of a photograph: what the experts' heads make of the predictions."""
    from innervision.engine.run import RunFolder
    from innervision.hub.fetch import locate_run

    image = Path(call.image)
    require(image.is_file(), f"there is no image {image}")
    run = RunFolder(locate_run(call.run))
    settings = run.trained_settings()
    names = _drawable(run.record().get("experts", {}), call.targets)
    from innervision.data import read_image
    from innervision.data.depth_maps import read_depth_map

    if call.depth is not None:
        kinds = {run.record()["experts"][name]["kind"] for name in names}
        require(
            "depth" in kinds, "--depth is shown beside what layers say of depth, which is no target of this picture"
        )
    depth = None if call.depth is None else read_depth_map(call.depth, image)
    tell_models(run.path, settings)
    import numpy as np

    from innervision.engine.decode import decode_layers
    from innervision.report.picture import draw_layers

    photograph = read_image(image)
    decoded = decode_layers(
        run.path, photograph, only=names, device=call.device, trust_remote_code=call.trust_remote_code
    )
    out = Path(call.out or f"{image.stem}-layers.png")
    shown = dict.fromkeys(names, np.asarray(photograph) / 255)
    draw_layers({Path(settings.mllm).name: decoded}, shown, out, depth=depth)
    show(out)


def _drawable(experts: Mapping[str, Any], asked: str | None) -> list[str]:
    """Choose the targets whose predictions are maps or images; say which are left out."""
    names = split_names(asked) if asked else [*experts]
    if unknown := [name for name in names if name not in experts]:
        raise InnerVisionError(f"the run has no target {unknown[0]!r}, only: {', '.join(experts)}")
    chosen = [name for name in names if experts[name]["kind"] in ("depth", "seg", "gen")]
    require(bool(chosen), f"nothing can be drawn of {', '.join(names)}: pictures are made of depth, seg and gen")
    if left := [name for name in names if name not in chosen]:
        tell(f"left out {', '.join(left)}: pictures are made of depth, seg and gen")
    return chosen


@dataclass
class Report:
    """What the page is made of."""

    runs: list[str]
    """Scored runs, each its folder or hf:USER/REPO; the others are compared with the first."""
    _: KW_ONLY
    out: str
    """The page, such as study.html."""
    data: str | None = None
    """Make the pictures of the explorer that the runs do not have yet, of images that they were scored on: the same as
    --data of evaluate, for all tasks, or TASK=PATH for each, separated by commas: depth=da2k,seg=coco,gen=coco. Loads
    the models."""
    images: int = 12
    """In the explorer, shared out among the targets."""
    device: str | None = None
    """For the pictures; by default the accelerator, where there is one."""
    trust_remote_code: bool = False
    """Run model code that comes with an MLLM's checkpoint. Only for sources that you trust."""


def report(call: Report) -> None:
    """Write one HTML page about one or several runs: findings, curves, differences, images, tables."""
    from innervision.engine.run import RunFolder
    from innervision.hub.fetch import locate_own_run, locate_run
    from innervision.report.page.write import check_out, write_page

    require(call.images >= 0, f"images must not be negative, as {call.images} is")
    check_out(call.out)
    if call.data:
        runs = [locate_own_run(run) for run in call.runs]
        for run in runs:
            tell_models(run, RunFolder(run).trained_settings())
        from innervision.report.page.pictures import make_pictures

        make_pictures(runs, call.data, call.images, device=call.device, trust_remote_code=call.trust_remote_code)
    else:
        runs = [locate_run(run) for run in call.runs]
    show(write_page(runs, call.out, images=call.images))


@dataclass
class Push:
    """What is published, and where."""

    run: str
    """Folder of a trained run."""
    repository: str
    """USER/REPO on the Hugging Face Hub; made if it does not exist."""
    _: KW_ONLY
    license: str
    """Of the probes and scores, as the Hub writes it: apache-2.0, mit, cc-by-4.0 …"""
    private: bool = False
    """Make the repository visible to its owner alone, if it is made."""


def push(call: Push) -> None:
    """Publish a run on the Hugging Face Hub, with a card made from it. A call that was stopped resumes."""
    from innervision.hub.fetch import locate_run, require_repository

    require_repository(call.repository)
    run = locate_run(call.run)
    from innervision.hub.push import push

    show(push(run, call.repository, licence=call.license, private=call.private))
    show(f"others use it as hf:{call.repository}")


@dataclass
class Pull:
    """What is fetched, and where it goes."""

    repository: str
    """USER/REPO or USER/REPO@REVISION on the Hugging Face Hub."""
    _: KW_ONLY
    out: str | None = None
    """The run's folder; by default runs/REPO."""


def pull(call: Pull) -> None:
    """Copy a run from the Hugging Face Hub to a folder of one's own. A call that was stopped resumes."""
    from innervision.hub.fetch import HubRun, pull

    run = HubRun.parse(call.repository)
    show(pull(run, call.out or f"runs/{run.name}"))
