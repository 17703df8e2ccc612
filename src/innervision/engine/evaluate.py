"""Scores the probes of a run: one walk through the layers, whatever is scored.

innervision evaluate similarity runs/a --images coco/val2017
innervision evaluate depth runs/a --data DA-2K
torchrun --nproc-per-node 4 -m innervision evaluate seg runs/a --data coco
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from innervision.checkpoints.identity import fingerprint
from innervision.config import EvaluateSettings, TaskSettings, TrainSettings
from innervision.data.loader import BadImages, Batch, load_batches
from innervision.engine.fit import autocast
from innervision.engine.processes import join_processes
from innervision.engine.run import RunFolder
from innervision.engine.scores import ScoreTable
from innervision.engine.session import batches_of, load_experts, load_mllm
from innervision.errors import InnerVisionError
from innervision.mllm import MLLM
from innervision.probes import ProbeBank
from innervision.targets.target import Target
from innervision.tasks import task_class
from innervision.tasks.evaluation import Evaluation, Part
from innervision.tasks.similarity import Similarity


def evaluate_similarity(
    path: str | Path,
    settings: EvaluateSettings,
    *,
    overwrite: bool = False,
    mllm: MLLM | None = None,
    targets: Sequence[Target] | None = None,
    progress: bool = True,
) -> Path:
    """Score every layer's prediction by its similarity to the expert's features.

    Written per image: `probe`, the prediction; `shuffled`, the prediction for another image of the batch (the one
    before it, cyclically); `mean`, the mean feature of the training images. See `innervision.metrics.similarity`.

    Arguments and errors: see `evaluate`.
    """
    evaluation = Similarity(settings, RunFolder(path).settings().protocol)
    return evaluate(path, evaluation, overwrite=overwrite, mllm=mllm, targets=targets, progress=progress)


def evaluate_task(
    path: str | Path,
    task: str,
    settings: TaskSettings,
    *,
    overwrite: bool = False,
    mllm: MLLM | None = None,
    targets: Sequence[Target] | None = None,
    progress: bool = True,
) -> Path:
    """Score every layer's prediction by a task (depth, seg, …), decoded by the expert's own head.

    Arguments and errors: see `evaluate`; `targets` must have been loaded with their heads.

    Raises:
        InnerVisionError: there is no such task, or its benchmark cannot be read.
    """
    evaluation = task_class(task)(settings)
    return evaluate(path, evaluation, overwrite=overwrite, mllm=mllm, targets=targets, progress=progress)


def evaluate(
    path: str | Path,
    evaluation: Evaluation,
    *,
    overwrite: bool = False,
    mllm: MLLM | None = None,
    targets: Sequence[Target] | None = None,
    progress: bool = True,
) -> Path:
    """Let the images pass through the MLLM once, and score each layer's predictions as the evaluation does.

    An interrupted evaluation goes on where it stopped. Where torchrun or accelerate launch started several processes,
    each takes a share of the batches, and the first one joins them; the table is that of one process.

    Args:
        path: of the run's folder.
        evaluation: what is scored, on which images.
        overwrite: score anew where there is a finished table, of whatever images and settings.
        mllm: instead of the one that the run names.
        targets: instead of those that the run names.
        progress: show a bar.

    Returns:
        The path of the table, RUN/scores/NAME.parquet, with the columns of `innervision.engine.scores.SCHEMA`.

    Raises:
        InnerVisionError: the run is not trained, does not fit the models or the evaluation, or has scores for
            something else.
    """
    settings, images = evaluation.settings, evaluation.images
    run = RunFolder(path)
    trained = run.settings()
    names = evaluation.choose(list(run.record()["experts"]))
    if lacking := [name for name in names if not run.probes(name).exists()]:
        raise InnerVisionError(
            f"{run.path} is not trained yet: there are no probes for {', '.join(lacking)}. "
            f"Go on with: innervision train --config {run.yaml} --resume"
        )
    bad = BadImages(images, settings.max_bad)
    evaluation.protocol = trained.protocol
    plan = {
        **evaluation.plan(),
        "protocol": trained.protocol,
        "num_images": len(images),
        "files": images.fingerprint(),
        "batch_size": settings.batch_size,
        "probes": {name: fingerprint(run.probes(name)) for name in names},
    }
    table = ScoreTable(run.scores, evaluation.name, plan, weighted=evaluation.weighted)
    rank = join_processes(settings.device)
    complete = table.is_complete(overwrite)
    rank.wait()
    if complete:
        return table.path
    trained.dtype = trained.dtype or run.record().get("dtype")
    mllm = mllm or load_mllm(trained, settings.device or rank.device)
    targets = targets or load_experts(trained, mllm, only=names, head=evaluation.head)
    targets = [target for target in targets if target.name in names]
    banks = {
        target.name: ProbeBank.load(run.probes(target.name), mllm, target).to(mllm.device).eval() for target in targets
    }
    evaluation.prepare(targets)
    order = _batches(len(images), settings.batch_size)
    batches = batches_of(images, order, mllm, trained, targets, evaluation.truth, evaluation.name)
    if rank.index == 0:
        table.open()
    rank.wait()
    done = table.done()
    bad.add(table.bad())
    rank.wait()  # until all have seen the same
    numbers = [number for number in range(len(order)) if number not in done][rank.index :: rank.count]
    on_gpu = mllm.device.type == "cuda"
    loader = load_batches(batches, numbers, workers=settings.workers, pin_memory=on_gpu)
    hidden = not progress or rank.index > 0
    before = sum(len(order[number]) for number in done)
    with tqdm(total=sum(map(len, order)), initial=before, unit="image", disable=hidden, dynamic_ncols=True) as bar:
        num_layers = len(next(iter(banks.values())).layers)
        began, seen = time.perf_counter(), 0
        for number, batch in zip(numbers, loader, strict=True):
            for name in bad.add(batch.bad):
                tqdm.write(f"left out {name}: {bad.reasons[name]}")
            part = Part() if batch.inputs is None else _walk(batch, mllm, targets, banks, trained, evaluation)
            table.write_part(number, part, batch.names, batch.bad)
            seen += len(batch.names)
            pace = (time.perf_counter() - began) / max(seen * num_layers, 1)
            bar.set_postfix_str(f"{1000 * pace:.3g} ms per image and layer")
            bar.update(len(order[number]) * rank.count)
    rank.wait()
    if rank.index == 0:
        bad.add(table.bad())
        table.finish({"bad_images": bad.reasons, **evaluation.facts()}, evaluation.conclude)
    rank.wait()
    return table.path


@torch.no_grad()
def _walk(
    batch: Batch,
    mllm: MLLM,
    targets: Sequence[Target],
    banks: Mapping[str, ProbeBank],
    trained: TrainSettings,
    evaluation: Evaluation,
) -> Part:
    """Let a batch pass through the MLLM, and each layer's states through its probes."""
    inputs = batch.inputs.to(mllm.device)
    comparison = evaluation.compare(batch, targets, banks)

    def look(layer: int, states: Tensor, mask: Tensor) -> None:
        grid = inputs.places(layer, states.shape[1])
        if trained.protocol == "paper":
            mask = torch.ones_like(mask)
        for name, bank in banks.items():
            with autocast(mllm.device):
                prediction = bank(layer, states, mask, grid)
            comparison.predicted(name, layer, prediction.float())

    layers = next(iter(banks.values())).layers
    mllm.visit(inputs, look, layers, tokens=trained.tokens)
    return comparison.finish()


def _batches(num_images: int, size: int) -> list[list[int]]:
    """Cut the images into batches of `size`; a single one left over joins the batch before it."""
    batches = [list(range(i, min(i + size, num_images))) for i in range(0, num_images, size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches
