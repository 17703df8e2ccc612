"""The command line: parses, calls, prints. Heavy imports wait until a command needs them."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import SUPPRESS, ArgumentParser, Namespace, set_parsing_settings

from innervision import __version__
from innervision.config import EvaluateSettings, GenSettings, ProbeSettings, TaskSettings, TrainSettings
from innervision.errors import InnerVisionError
from innervision.tasks import task_names

TASK_SETTINGS: dict[str, type[TaskSettings]] = {"gen": GenSettings}

PRESETS = {path.stem: path for path in (Path(__file__).parent / "original" / "presets").glob("*.yaml")}
"""Files of settings that come with the package, by name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 done, 1 failed. Wrong usage exits with status 2.
    """
    parser, commands = build_parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    chosen = parser.parse_args(_config_first([_with_underscores(word) for word in words]))
    name, options = chosen.command, chosen[chosen.command]
    if name == "evaluate":
        name, options = f"evaluate {options.task}", options[options.task]
    elif name == "data":
        name, options = f"data {options.what}", options[options.what]
    elif name == "world":
        name, options = f"world {options.action}", options[options.action]
    command = commands[name]
    try:
        if not options.pop("debug"):
            _quieten()
        command(parser, options)
    except InnerVisionError as error:
        if "--debug" in words:
            traceback.print_exc()
        print(f"innervision: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"innervision: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("innervision: stopped", file=sys.stderr)
        return 1
    return 0


def train(parser: ArgumentParser, options: Namespace) -> None:
    """Train probes for all targets on all layers of an MLLM."""
    settings = _settings(parser, TrainSettings, options)
    from innervision.engine.fit import fit
    from innervision.engine.run import RunFolder

    if options.resume and options.config:  # a run may have been moved since
        run = RunFolder(Path(str(options.config[-1])).parent)
        if run.yaml.exists() and run.settings().out == settings.out:
            settings.out = str(run.path)
    banks = fit(settings, resume=options.resume)
    for name in banks:
        print(RunFolder(settings.out).probes(name))
    print(f"next: innervision evaluate similarity {settings.out} --images VALIDATION_IMAGES")


def evaluate_similarity(parser: ArgumentParser, options: Namespace) -> None:
    """Score every layer by the similarity of its predictions to the expert's features."""
    settings = _settings(parser, EvaluateSettings, options)
    from innervision.engine import evaluate

    _show_scores(options.run, evaluate.evaluate_similarity(options.run, settings, overwrite=options.overwrite))


def evaluate_task(task: str, parser: ArgumentParser, options: Namespace) -> None:
    """Decode every layer's predictions with the expert's own head, and score them."""
    settings = _settings(parser, TASK_SETTINGS.get(task, TaskSettings), options)
    from innervision.engine import evaluate

    _show_scores(options.run, evaluate.evaluate_task(options.run, task, settings, overwrite=options.overwrite))


def _show_scores(run: str, path: Path) -> None:
    if int(os.environ.get("RANK", "0")) > 0:  # one of several processes speaks
        return
    from innervision.report.tables import format_table, read_scores, summarize, write_summary

    scores = read_scores(Path(run), path.stem)
    summary = summarize(scores)
    write_summary(summary, path.with_suffix(".csv"))
    print(format_table(summary, scores["target"].unique()), end="\n\n")
    print(f"{path.with_suffix('.csv')}  the same and more as CSV\n{path}  the score of each image")
    print(f"next: innervision plot {run} --out figure.png")


def import_probes(parser: ArgumentParser, options: Namespace) -> None:
    """Make a run of a probe checkpoint that the original code trained."""
    from innervision.original.import_probes import import_probes

    names = ("expert", "images", "revision", "template", "device")
    run = import_probes(options.checkpoint, options.out, **{name: options[name] for name in names})
    for target in run.record()["experts"]:
        print(run.probes(target))
    if not options.images:
        print(
            "without --images the run has no mean feature: scores leave out the floor `mean` and what is centred on it"
        )
    print(f"next: innervision evaluate similarity {options.out} --images VALIDATION_IMAGES")


def plot(parser: ArgumentParser, options: Namespace) -> None:
    """Draw the curves of one or several runs by layer, as PNG and PDF."""
    from innervision.report.figures import plot_curves

    metrics = [name.strip() for name in options.metrics.split(",")] if options.metrics else None
    for path in plot_curves([Path(run) for run in options.runs], Path(options.out), metrics):
        print(path)


def data_coco(parser: ArgumentParser, options: Namespace) -> None:
    """Fetch images and annotations of COCO 2017. A call that was cut is gone on with."""
    from innervision.data.benchmarks import download_coco

    annotations = options.annotations.split(",") if options.annotations else []
    for path in download_coco(options.out, options.split.split(","), annotations, options.mirror):
        print(path)


def data_da2k(parser: ArgumentParser, options: Namespace) -> None:
    """Fetch DA-2K, the pairs of points that score depth. A call that was cut is gone on with."""
    from innervision.data.benchmarks import download_da2k

    print(download_da2k(options.out, options.mirror))


def compare(parser: ArgumentParser, options: Namespace) -> None:
    """Say how much one run scores above another on the same images, layer by layer."""
    from innervision.report.compare import compare
    from innervision.report.tables import format_differences

    differences, left_out = compare(Path(options.run), Path(options.other))
    print(f"{options.run} less {options.other}, over the images that both have\n")
    print(format_differences(differences, differences["target"].unique()))
    for line in left_out:
        print(f"not compared: {line}")


def data_scenes(parser: ArgumentParser, options: Namespace) -> None:
    """Write synthetic scenes with exact truth, in the layouts of COCO and DA-2K."""
    from innervision.world.dataset import write_scenes

    out = Path(options.out)
    write_scenes(out, options.train, options.val, options.seed, options.size, options.workers)
    print(f"{out}  see its README.md")


def data_semantic(parser: ArgumentParser, options: Namespace) -> None:
    """Turn COCO's panoptic annotations into semantic label maps (PNG)."""
    from innervision.data.semantic import write_semantic

    written = write_semantic(options.coco, options.split, options.workers)
    print(
        f"{written.folder}  {written.maps} maps"
        + (f"; {written.missing} more are listed but not there" if written.missing else "")
    )


def demo(parser: ArgumentParser, options: Namespace) -> None:
    """Train, score and draw on images and models that come with the package, in a few minutes."""
    from innervision.world.demo import run_demo

    run_demo(Path(options.out))


def world_build(parser: ArgumentParser, options: Namespace) -> None:
    """Train the models that come with the package again, from nothing."""
    from tools.world.build import build

    only = options.only.split(",") if options.only else None
    build(Path(options.out), only, seed=options.seed, effort=options.effort)
    print(f"next: innervision world card --out {options.out}")


def world_card(parser: ArgumentParser, options: Namespace) -> None:
    """Measure the models that come with the package on held-out scenes, and write their card."""
    from tools.world.card import write_card

    from innervision.checkpoints.identity import MODELS

    path = write_card(Path(options.out or MODELS))
    print(path.read_text())
    print(path)


Command = Callable[[ArgumentParser, Namespace], None]


def build_parser() -> tuple[ArgumentParser, dict[str, Command]]:
    """Make the parser of all commands, and the function behind each."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="innervision",
        version=__version__,
        description="Shows what a multimodal LLM sees, layer by layer.",
    )
    commands = parser.add_subcommands(dest="command", title="commands", metavar="COMMAND")

    trainer = _leaf(train)
    trainer.add_argument(
        "--config", action="config", help="YAML file of settings, such as the run.yaml of another run."
    )
    trainer.add_argument(
        "--preset", choices=sorted(PRESETS), help="Settings of an experiment of the paper; other options change them."
    )
    trainer.add_class_arguments(TrainSettings)
    trainer.add_argument("--resume", action="store_true", help="Go on with the run that --out holds.")
    trainer.add_argument("--record", type=dict | None, help=SUPPRESS)
    commands.add_subcommand("train", trainer, help=train.__doc__)

    evaluator = ArgumentParser(description="Score the probes of a run.")
    commands.add_subcommand("evaluate", evaluator, help=evaluator.description)
    tasks = evaluator.add_subcommands(dest="task", title="tasks", metavar="TASK")
    similarity = _evaluator(evaluate_similarity, EvaluateSettings)
    tasks.add_subcommand("similarity", similarity, help=evaluate_similarity.__doc__)
    for name in task_names():
        tasks.add_subcommand(name, _evaluator(evaluate_task, TASK_SETTINGS.get(name, TaskSettings)), help=evaluate_task.__doc__)

    importer = _leaf(import_probes)
    importer.add_argument("checkpoint", help="Folder or Hub id of a probe checkpoint of the original code.")
    importer.add_argument("--out", required=True, help="The run's folder; made if it does not exist.")
    importer.add_argument(
        "--expert", type=str | None, help="Id or path of the expert; by default the one that the checkpoint names."
    )
    importer.add_argument(
        "--images",
        type=str | None,
        help="Images over which the expert's features are averaged, for the floor `mean` and centred scores.",
    )
    importer.add_argument("--revision", type=str | None, help="Branch, tag or commit of the checkpoint on the Hub.")
    importer.add_argument("--template", type=str | None, help="Conversation template; see train.")
    importer.add_argument("--device", type=str | None, help="By default the accelerator, where there is one.")
    commands.add_subcommand("import", importer, help=import_probes.__doc__)

    plotter = _leaf(plot)
    plotter.add_argument("runs", nargs="+", metavar="RUN", help="Folders of scored runs; each becomes a curve.")
    plotter.add_argument("--out", required=True, help="Where the figure goes; PNG and PDF are written both.")
    plotter.add_argument(
        "--metrics",
        type=str | None,
        help="Scores to draw, one row of panels each, such as cosine,accuracy; by default what the runs have.",
    )
    commands.add_subcommand("plot", plotter, help=plot.__doc__)

    comparer = _leaf(compare)
    comparer.add_argument("run", help="Folder of a scored run.")
    comparer.add_argument("other", help="Folder of the run that is taken from it.")
    commands.add_subcommand("compare", comparer, help=compare.__doc__)

    data = ArgumentParser(description="Make, fetch or convert data.")
    commands.add_subcommand("data", data, help=data.description)
    kinds = data.add_subcommands(dest="what", title="data", metavar="DATA")
    coco = _leaf(data_coco)
    coco.add_argument("out", help="Folder that becomes the root of COCO.")
    coco.add_argument("--split", required=True, help="Images to fetch: val2017, train2017 or both, with a comma.")
    coco.add_argument("--annotations", default="", help="Of captions, instances, panoptic; for these splits.")
    coco.add_argument("--mirror", type=str | None, help="URL of a copy of COCO's server; checksums are the same.")
    kinds.add_subcommand("coco", coco, help=data_coco.__doc__)
    da2k = _leaf(data_da2k)
    da2k.add_argument("out", help="Folder in which the folder DA-2K appears.")
    da2k.add_argument("--mirror", type=str | None, help="URL of a copy of the Hugging Face Hub.")
    kinds.add_subcommand("da2k", da2k, help=data_da2k.__doc__)
    scenes = _leaf(data_scenes)
    scenes.add_argument("out", help="Folder of the scenes; empty, or of a call that was interrupted.")
    scenes.add_argument("--train", type=int, required=True, help="Scenes of train2017.")
    scenes.add_argument("--val", type=int, required=True, help="Scenes of val2017 and of the depth pairs.")
    scenes.add_argument("--seed", type=int, default=0, help="Each seed is a world of its own.")
    scenes.add_argument("--size", type=int, default=112, help="Side of the images in pixels.")
    scenes.add_argument("--workers", type=int, default=1, help="Processes.")
    kinds.add_subcommand("scenes", scenes, help=data_scenes.__doc__)
    semantic = _leaf(data_semantic)
    semantic.add_argument("coco", help="Root of COCO, or a panoptic annotation file.")
    semantic.add_argument("--split", type=str | None, help="Such as val2017; not needed where there is but one.")
    semantic.add_argument("--workers", type=int, default=1, help="Processes.")
    kinds.add_subcommand("semantic", semantic, help=data_semantic.__doc__)

    demonstrator = _leaf(demo)
    demonstrator.add_argument("--out", default="runs/demo", help="Folder of the demo's runs and figures.")
    commands.add_subcommand("demo", demonstrator, help=demo.__doc__)

    world = ArgumentParser(description="Make and measure the models that come with the package.")
    commands.add_subcommand("world", world, help=world.description)
    actions = world.add_subcommands(dest="action", title="actions", metavar="ACTION")
    builder = _leaf(world_build)
    builder.add_argument("--out", default="runs/world", help="Folder of the models.")
    builder.add_argument("--only", type=str | None, help="Parts to train, such as depth,seg; by default all.")
    builder.add_argument("--seed", type=int, default=0, help="Of the weights and of the order of the scenes.")
    builder.add_argument("--effort", type=float, default=1.0, help="Share of the full training to do, for a try.")
    actions.add_subcommand("build", builder, help=world_build.__doc__)
    card = _leaf(world_card)
    card.add_argument("--out", type=str | None, help="Folder of the models; by default the package's own.")
    actions.add_subcommand("card", card, help=world_card.__doc__)
    functions: dict[str, Command] = {
        "train": train,
        "evaluate similarity": evaluate_similarity,
        "import": import_probes,
        **{f"evaluate {name}": partial(evaluate_task, name) for name in task_names()},
        "plot": plot,
        "compare": compare,
        "data coco": data_coco,
        "data da2k": data_da2k,
        "data scenes": data_scenes,
        "data semantic": data_semantic,
        "demo": demo,
        "world build": world_build,
        "world card": world_card,
    }
    return parser, functions


def _with_underscores(word: str) -> str:
    """Read --max-bad as --max_bad: people type both."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _config_first(words: list[str]) -> list[str]:
    """Put --preset, as the file that it names, and --config before the other options, so that neither undoes one."""
    first: dict[str, list[str]] = {"--preset": [], "--config": []}
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        if name not in first or not (equals or queue):
            rest.append(word)
            continue
        value = value if equals else queue.pop(0)
        known = name == "--preset" and value in PRESETS
        first[name] += ["--config", str(PRESETS[value])] if known else [name, value]
    return rest[:1] + first["--preset"] + first["--config"] + rest[1:]


def _leaf(function: Callable) -> ArgumentParser:
    parser = ArgumentParser(description=function.__doc__)
    parser.add_argument("--debug", action="store_true", help="Show warnings, and the traceback of an error.")
    return parser


def _evaluator(function: Callable, settings: type) -> ArgumentParser:
    parser = _leaf(function)
    parser.add_argument("run", help="Folder of a trained run.")
    parser.add_class_arguments(settings)
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="Score anew, whatever scores of these images or others the run has.",
    )
    return parser


def _settings(parser: ArgumentParser, kind: type, options: Namespace) -> Any:
    values = {field.name: options[field.name] for field in fields(kind)}
    try:
        if "probe" in values:
            values["probe"] = ProbeSettings(**dict(values["probe"]))
        return kind(**values)
    except InnerVisionError as error:
        parser.error(str(error))


def _quieten() -> None:
    """Keep the libraries' own bars and warnings off the terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


if __name__ == "__main__":
    sys.exit(main())
