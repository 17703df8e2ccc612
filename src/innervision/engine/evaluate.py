"""Scores the probes of a run: one walk through the layers, whatever is scored.

innervision evaluate similarity runs/a --images coco/val2017
innervision evaluate depth runs/a --data DA-2K
torchrun --nproc-per-node 4 -m innervision evaluate seg runs/a --data coco
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from innervision.checkpoints.identity import fingerprint
from innervision.config import EvaluateSettings, TaskSettings, TrainSettings
from innervision.data.loader import BadImages, Batch, load_batches
from innervision.data.partners import random_order
from innervision.engine.environment import made_by
from innervision.engine.interrupt import Stopped, stop_signals
from innervision.engine.mesh import Mesh
from innervision.engine.processes import Rank, join_processes
from innervision.engine.progress import Laps, Phases, Took
from innervision.engine.run import RunFolder, table_name
from innervision.engine.scores import ScoreTable
from innervision.engine.session import Session, memory_errors
from innervision.errors import InnerVisionError
from innervision.files import locked
from innervision.mllm import MLLM
from innervision.probes import ProbeBank, read_info
from innervision.registry import find
from innervision.targets.target import Target
from innervision.tasks.evaluation import Evaluation, Findings, join_findings
from innervision.tasks.similarity import Similarity
from innervision.terminal import tell, tell_left_out


def evaluate_similarity(path: str | Path, settings: EvaluateSettings, **options: Any) -> Path:
    """Score every layer's prediction by its similarity to the expert's features.

    Written per image: `probe`, the prediction; `shuffled`, the prediction for another image, drawn at random; `blank`,
    the prediction for a plain grey image; `mean`, the mean feature of the training images. See
    `innervision.metrics.similarity`; for the options see `evaluate`.
    """
    return evaluate(path, Similarity(settings), **options)


def evaluate_task(path: str | Path, task: str, settings: TaskSettings, **options: Any) -> Path:
    """Score every layer's prediction by a task (depth, seg, …), decoded by the expert's own head.

    For the options see `evaluate`; `targets` must have been loaded with their heads.

    Raises:
        InnerVisionError: there is no such task, or its benchmark cannot be read.
    """
    return evaluate(path, find("tasks", task)(settings), **options)


def evaluate(
    path: str | Path,
    evaluation: Evaluation,
    *,
    name: str | None = None,
    overwrite: bool = False,
    mllm: MLLM | None = None,
    targets: Sequence[Target] | None = None,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> Path:
    """Let the images pass through the MLLM once, and score each layer's predictions as the evaluation does.

    An interrupted evaluation resumes when it is called again. Where torchrun or accelerate launch started several
    processes, each takes a share of the batches, and the first one joins them; the table is that of one process.

    Args:
        path: of the run's folder.
        evaluation: what is scored, on which images.
        name: of the table, beside that of the evaluation, so that a run may hold scores of several sets of images.
        overwrite: score anew where there is a finished table, of whatever images and settings.
        mllm: instead of the one that the run names.
        targets: instead of those that the run names.
        trust_remote_code: run model code that comes with the MLLM's checkpoint.
        progress: show a bar.

    Returns:
        The path of the table, RUN/scores/EVALUATION.parquet, or EVALUATION@NAME.parquet where it has a name of its own,
        with the columns of `innervision.engine.scores.SCHEMA`.

    Raises:
        InnerVisionError: the run is not trained, does not fit the models or the evaluation, or has scores for
            something else, or another process scores the same.
        Stopped: by Ctrl-C, SIGTERM or SIGHUP to any of the processes, after the batches at work were written.
    """
    laps = Laps()
    with join_processes(evaluation.settings.device) as rank:
        return _evaluate(
            rank, RunFolder(path), evaluation, name, overwrite, mllm, targets, trust_remote_code, progress, laps
        )


def _evaluate(
    rank: Rank,
    run: RunFolder,
    evaluation: Evaluation,
    name: str | None,
    overwrite: bool,
    mllm: MLLM | None,
    targets: Sequence[Target] | None,
    trust_remote_code: bool,
    progress: bool,
    laps: Laps,
) -> Path:
    """See `evaluate`; `rank` is this process's."""
    rank.require_alike(
        {**asdict(evaluation.settings), "device": None, "name": name, "overwrite": overwrite, **made_by()}
    )
    trained = run.trained_settings()
    evaluation.protocol = trained.protocol
    names = _choose(run, evaluation)
    if evaluation.settings.limit is not None:
        evaluation.images = evaluation.images.sample(evaluation.settings.limit, seed=0)
    table = _table(run, evaluation, names, name)
    if rank.first(lambda: table.is_complete(overwrite)):
        return table.path
    with ExitStack() as stack, memory_errors("lower batch_size or decode_batch_size"):

        def begin() -> bool:
            stack.enter_context(locked(table.lock))
            return table.is_complete(overwrite)  # by a process that had the lock until now

        if rank.first(begin):
            return table.path
        mesh = Mesh.of(rank, evaluation.settings.split_mllm)
        session = Session.load(
            trained,
            evaluation.name,
            mllm=mllm,
            targets=targets,
            only=names,
            head=evaluation.head,
            device=rank.device or evaluation.settings.device,
            split=evaluation.settings.split_mllm,
            trust_remote_code=trust_remote_code,
        )
        layers = [*read_info(run.probes(names[0]))[0].widths]
        own = mesh.own(layers)
        banks = {target.name: ProbeBank.load(run.probes(target.name), own) for target in session.targets}
        for target in session.targets:
            banks[target.name].check(session.mllm, target)
            session.place(banks[target.name]).eval()
        evaluation.prepare(session.targets)
        bad = BadImages(evaluation.images, evaluation.settings.max_bad)
        for note in evaluation.images.notes:
            tell(note)
        tell_left_out(bad.reasons)
        if _trained_on(run, trained, evaluation, table):
            tell("warning: the probes were trained on images of this set: score them on others")
        plan = _Plan(evaluation, session, mesh, layers, banks, session.predict_blank(banks, layers), table, bad, laps)
        _loop(plan, progress)
        rank.first(lambda: _finish(plan))
    return table.path


def _trained_on(run: RunFolder, trained: TrainSettings, evaluation: Evaluation, table: ScoreTable) -> bool:
    """Tell whether the images that are scored are those of the training, or come from the same place."""
    place = getattr(evaluation.settings, "images", None) or getattr(evaluation.settings, "data", None)
    same_place = place is not None and Path(place).expanduser().resolve() == Path(trained.images)
    return same_place or table.plan["files"] == (run.record().get("images") or {}).get("files")


@dataclass
class _Plan:
    """What is scored, by what, and where the scores go."""

    evaluation: Evaluation
    session: Session
    mesh: Mesh
    layers: list[int]
    """Of all probes."""
    banks: dict[str, ProbeBank]
    """Of this process's layers."""
    blank: dict[str, dict[int, Tensor]]
    """By target and layer: the prediction where the MLLM is shown a plain grey image."""
    table: ScoreTable
    bad: BadImages
    laps: Laps

    @property
    def devices(self) -> int:
        """Of the processes that hold one MLLM together."""
        return self.mesh.layers.count * self.session.count_devices(self.layers)

    @property
    def order(self) -> list[list[int]]:
        """For every batch the indices of its images, each of which is followed by its partner."""
        indices, size = random_order(self.evaluation.images.names), self.evaluation.settings.batch_size
        return [indices[i : i + size] for i in range(0, len(indices), size)]


def _choose(run: RunFolder, evaluation: Evaluation) -> list[str]:
    """Name the targets that are scored.

    Raises:
        InnerVisionError: the run has none of them, or is not trained yet.
    """
    names = evaluation.choose({name: expert["kind"] for name, expert in run.record().get("experts", {}).items()})
    if lacking := [name for name in names if not run.probes(name).exists()]:
        raise InnerVisionError(
            f"{run.path} is not trained yet: there are no probes for {', '.join(lacking)}. "
            f"Resume it with: innervision train --config {run.yaml} --resume"
        )
    return names


def _table(run: RunFolder, evaluation: Evaluation, names: Sequence[str], name: str | None) -> ScoreTable:
    """Give the table for the scores, with all that decides them."""
    plan = {
        **evaluation.plan(),
        "protocol": evaluation.protocol,
        "experts_dtype": run.settings().expert_dtype,
        "experts": {name: run.record()["experts"][name] for name in names},
        "num_images": len(evaluation.images),
        "files": evaluation.images.fingerprint(),
        "batch_size": evaluation.settings.batch_size,
        "probes": {name: fingerprint(run.probes(name)) for name in names},
    }
    return ScoreTable(run.scores, table_name(evaluation.name, name), plan, weighted=evaluation.weighted)


def _loop(plan: _Plan, progress: bool) -> None:
    """Score this process's share of the batches that are left, and write each as a part of the table."""
    evaluation, session, table, order = plan.evaluation, plan.session, plan.table, plan.order
    rank, images, row = plan.mesh.all, plan.mesh.images, plan.mesh.layers

    def begin() -> tuple[set[int], list[tuple[str, str]]]:
        table.open()
        done = table.done()
        return done, table.bad(done)

    done, bad = rank.first(begin)  # all processes share out what the first one sees
    plan.bad.add(bad)
    numbers = [number for number in range(len(order)) if number not in done][images.index :: images.count]
    loading = load_batches(
        session.batches(evaluation.images, order, truth=evaluation.truth, paired=evaluation.paired),
        numbers,
        workers=evaluation.settings.workers,
        pin_memory=session.mllm.device.type == "cuda",
    )
    total, done_before = sum(map(len, order)), sum(len(order[number]) for number in done)
    work = {evaluation.name: total - done_before, **dict.fromkeys(evaluation.last_phases, 1)}
    phases = Phases(work, shown=progress and rank.index == 0)
    stopped = False
    with (
        phases.bar(evaluation.name, total, "images", done_before) as bar,
        stop_signals("after this batch") as stop,
        loading as loader,
    ):
        rank.spread(stop)
        for number in numbers:
            size = len(order[number]) * images.count
            with phases.work(evaluation.name, size):
                batch = next(loader)
                for name in plan.bad.add(batch.bad):
                    tell(f"left out {name}: {plan.bad.reasons[name]}", from_all=True)
                plan.mesh.require_same_images(batch.names)
                found = row.bring_all(_score(plan, batch).on_cpu())
                if plan.mesh.leads_row:
                    took = Took().plus(plan.laps.lap() / images.count, images.count * plan.devices)
                    table.write_part(number, join_findings(found), batch.hashes, batch.bad, took)
            bar.update(size)
            if any(row.exchange(stop.asked)) and number != numbers[-1]:
                stopped = True
                break
    if any(rank.exchange(stopped)):
        raise Stopped("stopped; what is scored is kept, and the same call resumes it")


@torch.no_grad()
def _score(plan: _Plan, batch: Batch) -> Findings:
    """Let a batch pass through the MLLM and the probes, and each prediction through the evaluation."""
    findings = Findings()
    if batch.inputs is None:
        return findings
    comparisons = {
        target.name: plan.evaluation.compare(batch, target, plan.banks[target.name].mean, plan.blank[target.name])
        for target in plan.session.targets
    }

    def receive(name: str, layer: int, prediction: Tensor) -> None:
        comparisons[name].predicted(layer, prediction)

    plan.session.predict(batch.inputs, plan.banks, receive, plan.layers)
    for comparison in comparisons.values():
        findings.add(comparison.finish())
    return findings


def _finish(plan: _Plan) -> None:
    """Join what all processes have found."""
    count = len(plan.order)
    plan.table.whole(count)
    plan.bad.add(plan.table.bad(range(count)))
    took = plan.table.took()

    def facts() -> dict[str, Any]:
        return {
            "bad_images": plan.bad.reasons,
            "metrics": {metric.key: asdict(metric) for metric in plan.evaluation.metrics},
            "setup": plan.session.setup(),
            "settings": asdict(plan.evaluation.settings),
            "took": took.plus(plan.laps.lap(), plan.mesh.images.count * plan.devices).rounded(),
            **plan.evaluation.facts(),
        }

    plan.table.finish(count, facts, plan.evaluation.conclude)
