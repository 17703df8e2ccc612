"""The page of a run on the Hub: what was measured, its curves, its best layers, and how to load it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from innervision import __version__
from innervision.checkpoints.identity import is_public
from innervision.engine.run import RunFolder
from innervision.errors import printable
from innervision.report.duration import duration
from innervision.report.files import evaluations_of, read_facts, read_scores
from innervision.report.overview import overviews, with_source
from innervision.report.tables import layer_name, summarize, with_interval

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

HEADERS = ("target", "metric", "best layer", "score [95% interval]", "best floor", "ceiling", "images")


def make_card(path: str | Path, repository: str, licence: str, picture: str | None) -> "ModelCard":
    """Write the card of a run.

    Args:
        path: of the run's folder.
        repository: USER/REPO, where it goes.
        licence: of the probes and scores, as the Hub writes it, such as apache-2.0.
        picture: name of the file with the curves, beside the card; None where there are no scores.

    Raises:
        InnerVisionError: the run or its scores cannot be read.
    """
    from huggingface_hub import ModelCard, ModelCardData

    settings, record = RunFolder(path).settings(), RunFolder(path).record()
    data = ModelCardData(
        license=licence,
        library_name="innervision",
        tags=["innervision", "probing", "interpretability", "multimodal", *sorted(record["experts"])],
        base_model=settings.mllm if is_public(settings.mllm) and not settings.mllm.startswith("world/") else None,
    )
    experts = [[name, each["kind"], each.get("name"), each.get("revision")] for name, each in record["experts"].items()]
    layers = record.get("layers") or []
    facts: list[Sequence[Any]] = [
        ["MLLM", f"{_name(settings.mllm)}, random weights: {settings.random_weights}"],
        ["layers", ", ".join(layer_name(layer) for layer in layers if isinstance(layer, int))],
        ["probe", settings.probe.kind],
        ["prompt", settings.prompt],
        ["protocol", settings.protocol],
        ["images", (record.get("images") or {}).get("found")],
        ["training took", duration(record.get("took"))],
        ["InnerVision", ((record.get("setup") or {}).get("versions") or {}).get("innervision", __version__)],
    ]
    parts = [
        f"# {repository}",
        f"What {_cell(_name(settings.mllm))} sees, layer by layer: probes that predict the features of frozen vision "
        "experts from every layer of a frozen multimodal LLM, and their scores. Made with InnerVision.",
        f"![Scores by layer]({picture})" if picture else "",
        "## Best layers",
        _table(HEADERS, _best(path)) if picture else "The run has not been scored yet.",
        "A layer says something only as far as it lies above its floors: what needs no MLLM (mean, zero), or not this "
        "image (shuffled, blank). The ceiling is what the expert itself reaches."
        if picture
        else "",
        "## What was probed",
        _table(("", ""), facts),
        _table(("target", "kind", "expert", "revision"), experts),
        "## Load it",
        "```bash\n"
        f"innervision show hf:{repository}\n"
        f"innervision plot hf:{repository} --out curves.png\n"
        f"innervision pull {repository} --out runs/{repository.rpartition('/')[2]}\n```",
        "The probes alone, without the MLLM and the experts:",
        "```python\n"
        "from innervision import ProbeBank\n"
        "from innervision.hub.fetch import locate_run\n\n"
        f'bank = ProbeBank.load(locate_run("hf:{repository}") / "probes/{next(iter(record["experts"]))}.safetensors")\n'
        "```",
        "Models and data have licences of their own.",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n")


def _best(path: str | Path) -> Iterable[Sequence[Any]]:
    """Give the rows of the table of best layers: of all main metrics that the run was scored by."""
    for evaluation in evaluations_of(path):
        scores, facts = read_scores(path, evaluation), read_facts(path, evaluation)
        for each in overviews(summarize(scores, facts.metrics), scores["target"].unique(), facts.metrics):
            if each.metric.main and each.protocol == "standard":
                named = [with_source(row, each.metric) for row in (each.floor, each.ceiling)]
                score = with_interval(each.best, each.metric)
                yield [each.target, each.metric.name, layer_name(int(each.best.layer)), score, *named, each.best.images]


def _name(model: str) -> str:
    """Name a model as others may see it: a folder by its last part."""
    return model if is_public(model) else Path(model).name


def _table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    """Write a text so that it stays one cell and stays text."""
    text = printable(" ".join(str("" if value is None else value).split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "\\`").replace("[", "\\[")
