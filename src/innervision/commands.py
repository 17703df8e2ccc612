"""The commands of the command line: what each takes, and what it does. Heavy imports wait until one runs."""

import os
from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from innervision.config import DType, EvaluateSettings, GenSettings, TaskSettings, TrainSettings, split_names
from innervision.errors import InnerVisionError, require
from innervision.registry import find, offered, require_offered
from innervision.run_commands import (
    Compare,
    Picture,
    Plot,
    Pull,
    Push,
    Report,
    Show,
    compare,
    picture,
    plot,
    pull,
    push,
    report,
    show_runs,
    tell_models,
)
from innervision.targets import parse_targets
from innervision.terminal import show, tell


class Command(NamedTuple):
    """What the parser of a command is made from."""

    run: Callable[..., None]
    """Called with the command's own arguments and, where there are any, the settings."""
    arguments: type
    """Dataclass of what a call alone decides; its fields that are not keyword-only are positional."""
    settings: Callable[[], type] | None = None
    """Gives the dataclass of the settings; called for the command that is parsed only."""
    takes_files: bool = False
    """Whether settings may come from --preset and --config."""

    @property
    def help(self) -> str:
        """What the command does, in a line."""
        return (self.run.func if isinstance(self.run, partial) else self.run).__doc__ or ""


GROUPS = {"evaluate": "Score the probes of a run.", "data": "Make or fetch data."}
"""First words of commands that have two."""


def commands() -> dict[str, Command]:
    """Give all commands by their words, such as `evaluate depth`; one for every task that is installed."""
    return {
        "train": Command(train, Train, lambda: TrainSettings, takes_files=True),
        "evaluate similarity": Command(evaluate_similarity, Evaluate, lambda: EvaluateSettings),
        **{
            f"evaluate {task}": Command(partial(evaluate_task, task), Evaluate, partial(_settings_of, task))
            for task in sorted(offered("tasks"))
        },
        "check": Command(check, Check),
        "import": Command(import_probes, Import),
        "show": Command(show_runs, Show),
        "plot": Command(plot, Plot),
        "picture": Command(picture, Picture),
        "compare": Command(compare, Compare),
        "report": Command(report, Report),
        "push": Command(push, Push),
        "pull": Command(pull, Pull),
        "data coco": Command(data_coco, Coco),
        "data da2k": Command(data_da2k, Da2k),
        "data scenes": Command(data_scenes, Scenes),
        "demo": Command(demo, Demo),
    }


SETTINGS: dict[str, type[TaskSettings]] = {"depth": TaskSettings, "seg": TaskSettings, "gen": GenSettings}
"""`settings_class` of the tasks of this package, which need no torch: so wrong usage is told at once."""


def _settings_of(task: str) -> type[TaskSettings]:
    return SETTINGS.get(task) or find("tasks", task).settings_class


@dataclass(kw_only=True)
class Train:
    """What a call decides beside the settings."""

    resume: bool = False
    """Resume the run that --out holds."""
    dry_run: bool = False
    """Say what the run would take, from configurations alone, and do nothing."""
    tflops: float | None = None
    """With --dry-run: operations that a device does in a second, in 10¹², to say how long the run would take."""
    trust_remote_code: bool = False
    """Run model code that comes with the MLLM's checkpoint. Only for sources that you trust."""


def train(call: Train, settings: TrainSettings) -> None:
    """Train probes for all targets on all layers of an MLLM."""
    from innervision.engine.run import RunFolder

    require(call.dry_run or call.tflops is None, "--tflops goes with --dry-run")
    parse_targets(settings.targets)  # what is wrong is told before torch is imported, which takes seconds
    require_offered("probes", settings.probe.kind)
    _require_path(settings.images)
    if call.dry_run:
        from innervision.engine.dry_run import dry_run

        show(dry_run(settings, call.tflops, trust_remote_code=call.trust_remote_code))
        return
    tell(f"loading {settings.mllm} and the experts {settings.targets}")
    from innervision.engine.fit import fit

    banks = fit(settings, resume=call.resume, trust_remote_code=call.trust_remote_code)
    for target in banks:
        show(RunFolder(settings.out).probes(target))
    if banks:  # which the first of several processes has
        show(f"next: innervision evaluate similarity {settings.out} --images VALIDATION_IMAGES")


def _require_path(name: str) -> None:
    require(Path(name).expanduser().exists(), f"no such file or folder: {name}")


@dataclass
class Evaluate:
    """What a call decides beside the settings."""

    run: str
    """A trained run: its folder, or hf:USER/REPO, which is pulled to runs/REPO."""
    _: KW_ONLY
    name: str | None = None
    """Name of the table, such as val-b: so a run may hold scores of several sets of images."""
    overwrite: bool = False
    """Score anew, whatever scores of these images or others the run has under this name."""
    table: bool = False
    """Show all layers, metrics and groups, not the best layers alone."""
    dry_run: bool = False
    """Say what scoring would take, from configurations alone, and do nothing."""
    tflops: float | None = None
    """With --dry-run: operations that a device does in a second, in 10¹², to say how long scoring would take."""
    trust_remote_code: bool = False
    """Run model code that comes with the MLLM's checkpoint. Only for sources that you trust."""


def evaluate_similarity(call: Evaluate, settings: EvaluateSettings) -> None:
    """Score every layer by the similarity of its predictions to the expert's features."""
    run = _run_to_score(call, settings.images)
    if call.dry_run:
        from innervision.tasks.similarity import Similarity

        _show_dry_run(call, run, Similarity(settings))
        return
    from innervision.engine.evaluate import evaluate_similarity

    _show_scores(call, run, evaluate_similarity(run, settings, **_how(call)))


def evaluate_task(task: str, call: Evaluate, settings: TaskSettings) -> None:
    """Decode every layer's predictions with the expert's own head, and score them."""
    run = _run_to_score(call, settings.data if task in SETTINGS else ".")  # data of others may lie anywhere
    if call.dry_run:
        _show_dry_run(call, run, find("tasks", task)(settings))
        return
    from innervision.engine.evaluate import evaluate_task

    _show_scores(call, run, evaluate_task(run, task, settings, **_how(call)))


def _show_dry_run(call: Evaluate, run: Path, evaluation: Any) -> None:
    from innervision.engine.dry_run import dry_run_scoring

    show(dry_run_scoring(run, evaluation, call.tflops, trust_remote_code=call.trust_remote_code))


def _how(call: Evaluate) -> dict[str, Any]:
    """Give what the functions of the engine take of a call."""
    return {"name": call.name, "overwrite": call.overwrite, "trust_remote_code": call.trust_remote_code}


def _run_to_score(call: Evaluate, data: str) -> Path:
    """Find a run and data, and say which models the run names."""
    require(call.dry_run or call.tflops is None, "--tflops goes with --dry-run")
    from innervision.engine.run import RunFolder, table_name
    from innervision.hub.fetch import locate_own_run

    table_name("", call.name)  # which may be wrong
    run = locate_own_run(call.run)
    settings = RunFolder(run).trained_settings()
    _require_path(data)
    tell_models(run, settings)
    return run


def _show_scores(call: Evaluate, run: Path, path: Path) -> None:
    if int(os.environ.get("RANK", "0")) > 0:  # one of several processes speaks
        return
    from innervision.report.overview import LEGEND, overview_text
    from innervision.report.tables import tabulate

    text = tabulate(run, path.stem).text if call.table else f"{overview_text(run, path.stem)}\n\n{LEGEND}"
    show(f"{text}\n")
    if (summary := path.with_suffix(".csv")).exists():  # it is not where the run may only be read
        show(f"{summary}  all layers as CSV (on the terminal: --table)")
    show(f"{path}  the score of each image")
    show(f"next: innervision plot {run} --out figure.png")


@dataclass
class Check:
    """Which model is checked, and how it is loaded."""

    model: str
    """Image-text model: a Hugging Face id or the path of a folder."""
    _: KW_ONLY
    trust_remote_code: bool = False
    """Run model code that comes with the checkpoint. Only for sources that you trust."""
    random_weights: Literal["none", "llm", "all"] = "none"
    """Give the LLM, or all of the model, fresh weights."""
    device: str | None = None
    """By default the accelerator, where there is one."""
    dtype: DType | None = None
    """Of the weights; by default bfloat16 on an accelerator and float32 on a CPU."""


def check(call: Check) -> None:
    """Test whether a model's layers can be read, and say what they are."""
    import torch

    from innervision.mllm.check import describe, hidden_states_agree, self_test
    from innervision.mllm.model import MLLM

    mllm = MLLM.load(
        call.model,
        trust_remote_code=call.trust_remote_code,
        random_weights=call.random_weights,
        device=call.device,
        dtype=None if call.dtype is None else getattr(torch, call.dtype),
    )
    for title, text in describe(mllm):
        show(f"{title:<38} {text}")
    findings = [*self_test(mllm), hidden_states_agree(mllm)]
    for finding in findings:
        show(f"{finding.test:<38} {finding.verdict}: {finding.detail}")
    if errors := sum(finding.verdict == "error" for finding in findings):
        raise InnerVisionError(f"{mllm.name} cannot be probed as it is: {errors} of {len(findings)} tests failed")


@dataclass
class Import:
    """What is imported, and how."""

    checkpoint: str
    """Folder or Hub id of a probe checkpoint of the original code."""
    _: KW_ONLY
    out: str
    """The run's folder; made if it does not exist."""
    expert: str | None = None
    """Id or path of the expert; by default the one that the checkpoint names."""
    images: str | None = None
    """Images over which the expert's features are averaged, for the floor `mean` and centred scores."""
    revision: str | None = None
    """Branch, tag or commit of the checkpoint on the Hub."""
    template: str | None = None
    """Conversation template; see train."""
    device: str | None = None
    """By default the accelerator, where there is one."""


def import_probes(call: Import) -> None:
    """Make a run of a probe checkpoint that the original code trained."""
    from innervision.engine.importing import import_run

    run = import_run(**asdict(call))
    for target in run.record()["experts"]:
        show(run.probes(target))
    if not call.images:
        show("without --images the run has no mean feature: scores lack the floor `mean` and what is centred on it")
    show(f"next: innervision evaluate similarity {call.out} --images VALIDATION_IMAGES")


@dataclass
class Coco:
    """What is fetched."""

    out: str
    """Folder that becomes the root of COCO."""
    _: KW_ONLY
    split: str
    """Images to fetch: val2017, train2017 or both, with a comma."""
    annotations: str = ""
    """Of captions, instances, panoptic; for these splits."""
    mirror: str | None = None
    """URL of a copy of COCO's server; checksums are the same."""


def data_coco(call: Coco) -> None:
    """Fetch images and annotations of COCO 2017. A call that was stopped resumes."""
    from innervision.data.benchmarks import download_coco

    annotations = split_names(call.annotations) if call.annotations else []
    for path in download_coco(call.out, split_names(call.split), annotations, call.mirror):
        show(path)


@dataclass
class Da2k:
    """What is fetched."""

    out: str
    """Folder in which the folder DA-2K appears."""
    _: KW_ONLY
    mirror: str | None = None
    """URL of a copy of the Hugging Face Hub."""


def data_da2k(call: Da2k) -> None:
    """Fetch DA-2K, the pairs of points that score depth. A call that was stopped resumes."""
    from innervision.data.benchmarks import download_da2k

    show(download_da2k(call.out, call.mirror))


@dataclass
class Scenes:
    """How many scenes, and which."""

    out: str
    """Folder of the scenes; empty, or of a call that was interrupted."""
    _: KW_ONLY
    train: int
    """Scenes of train2017."""
    val: int
    """Scenes of val2017 and of the depth pairs."""
    seed: int = 0
    """Each seed is a world of its own."""
    size: int = 112
    """Side of the images in pixels."""
    workers: int = 1
    """Processes."""


def data_scenes(call: Scenes) -> None:
    """Write synthetic scenes with exact truth, in the layouts of COCO and DA-2K."""
    from innervision.world.dataset import write_scenes

    write_scenes(Path(call.out), call.train, call.val, call.seed, call.size, call.workers)
    show(f"{call.out}  see its README.md")


@dataclass(kw_only=True)
class Demo:
    """Where it goes."""

    out: str = "runs/demo"
    """Folder of the demo's runs and figures."""


def demo(call: Demo) -> None:
    """Train, score and draw on images and models that come with the package, in a few minutes."""
    from innervision.world.demo import run_demo

    run_demo(Path(call.out))
