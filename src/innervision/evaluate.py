"""Scores the probes of a run.

innervision evaluate similarity runs/a --images coco/val2017
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm.auto import tqdm

from innervision.config import EvaluateSettings
from innervision.data import ImageSet, find_images
from innervision.data.loader import BadImages, Batch, load_batches
from innervision.errors import InnerVisionError
from innervision.files import atomic_write
from innervision.metrics.similarity import similarity
from innervision.mllm import MLLM, Tokens
from innervision.probes import ProbeBank
from innervision.run import RunFolder, package_versions
from innervision.study import batches_of, load_experts, load_mllm
from innervision.targets.target import Target
from innervision.train import autocast

PROTOCOL = "standard"

SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("target", pa.string()),
        ("layer", pa.int16()),
        ("source", pa.string()),
        ("metric", pa.string()),
        ("protocol", pa.string()),
        ("value", pa.float64()),
    ]
)
"""Of a score table. The layer is null where the score belongs to none (the mean feature)."""


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
    An interrupted evaluation goes on where it stopped.

    Args:
        path: of the run's folder.
        settings: of the evaluation.
        overwrite: replace a finished table for other images or other settings.
        mllm: instead of the one that the run names.
        targets: instead of those that the run names.
        progress: show a bar.

    Returns:
        The path of the table, RUN/scores/similarity.parquet, with the columns of `SCHEMA`.

    Raises:
        InnerVisionError: the run is not trained, does not fit the models, or has scores for something else.
    """
    run = RunFolder(path)
    trained = run.settings()
    names = list(run.record()["experts"])
    if lacking := [name for name in names if not run.probes(name).exists()]:
        raise InnerVisionError(
            f"{run.path} is not trained yet: there are no probes for {', '.join(lacking)}. "
            f"Go on with: innervision train --config {run.yaml} --resume"
        )
    images = find_images(settings.images)
    bad = BadImages(images, settings.max_bad)
    table = ScoreTable(run.scores, "similarity", _plan(settings, images))
    if table.is_complete(overwrite):
        return table.path
    trained.dtype = trained.dtype or run.record().get("dtype")
    mllm = mllm or load_mllm(trained, settings.device)
    targets = targets or load_experts(trained, mllm)
    banks = {
        target.name: ProbeBank.load(run.probes(target.name), mllm, target).to(mllm.device).eval() for target in targets
    }
    order = _batches(len(images), settings.batch_size)
    batches = batches_of(images, order, mllm, trained.prompt, targets)
    on_gpu = mllm.device.type == "cuda"
    table.open()
    bad.add(table.bad())
    with tqdm(total=len(images), unit="image", disable=not progress, dynamic_ncols=True) as bar:
        start = table.num_parts()
        bar.update(sum(len(batch) for batch in order[:start]))
        loader = load_batches(batches, start=start, workers=settings.workers, pin_memory=on_gpu)
        for number, batch in enumerate(loader, start=start):
            for name in bad.add(batch.bad):
                tqdm.write(f"left out {name}: {bad.reasons[name]}")
                table.write_bad(bad.reasons)
            scores = [] if batch.inputs is None else _similarity(batch, mllm, targets, banks, trained.tokens)
            table.write_part(number, batch.names, scores)
            bar.update(len(order[number]))
    table.finish({"bad_images": bad.reasons})
    return table.path


@dataclass(frozen=True)
class Score:
    """One score of a batch of images."""

    target: str
    layer: int | None
    source: str
    metric: str
    values: Tensor  # (B,) float64


class ScoreTable:
    """A Parquet table that grows by parts, so that an interrupted evaluation can go on."""

    def __init__(self, folder: Path, name: str, plan: dict[str, Any]) -> None:
        """Point at `folder/name.parquet`.

        Args:
            folder: the run's scores.
            name: of the evaluation.
            plan: what is scored; parts of another plan are not used.
        """
        self.path = folder / f"{name}.parquet"
        self.facts = folder / f"{name}.json"
        self.parts = folder / f".{name}"
        self.plan = plan

    def is_complete(self, overwrite: bool) -> bool:
        """Tell whether the finished table is there.

        Raises:
            InnerVisionError: a finished table of another plan is there, and `overwrite` is not asked for.
        """
        if not (self.path.exists() and self.facts.exists()):
            return False
        other = json.loads(self.facts.read_text())["plan"]
        if other == self.plan:
            return True
        if not overwrite:
            differences = "; ".join(f"{key}: {other.get(key)}" for key in self.plan if other.get(key) != self.plan[key])
            raise InnerVisionError(
                f"{self.path} holds scores made otherwise ({differences}); add --overwrite to replace them"
            )
        return False

    def open(self) -> None:
        """Make ready for parts: those of the same plan are kept, others go."""
        plan = self.parts / "plan.json"
        if self.parts.exists() and not (plan.exists() and json.loads(plan.read_text()) == self.plan):
            shutil.rmtree(self.parts)
        for left_over in self.parts.glob(".*"):  # half-written when a process was killed
            left_over.unlink()
        if not plan.exists():
            with atomic_write(plan) as temporary:
                temporary.write_text(json.dumps(self.plan))

    def num_parts(self) -> int:
        """Count the parts that are done; they are numbered from 0 without a gap."""
        return len(list(self.parts.glob("[0-9]*.parquet")))

    def write_part(self, number: int, images: Sequence[str], scores: Sequence[Score]) -> None:
        """Write one part: the scores of a batch of images."""
        columns: dict[str, Any] = {
            "image": np.tile(np.array(images, dtype=object), len(scores)),
            "target": [score.target for score in scores],
            "layer": [score.layer for score in scores],
            "source": [score.source for score in scores],
            "metric": [score.metric for score in scores],
            "protocol": [PROTOCOL] * len(scores),
            "value": torch.stack([score.values for score in scores]).flatten().cpu().numpy() if scores else [],
        }
        each = np.arange(len(scores)).repeat(len(images))
        arrays = [
            pa.array(values, field.type)
            if name in ("image", "value")
            else pa.array(values, field.type).take(pa.array(each))
            for (name, values), field in zip(columns.items(), SCHEMA, strict=True)
        ]
        with atomic_write(self.parts / f"{number:06}.parquet") as temporary:
            pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), temporary)

    def bad(self) -> list[tuple[str, str]]:
        """Read the images that the parts leave out."""
        path = self.parts / "bad_images.json"
        return list(json.loads(path.read_text()).items()) if path.exists() else []

    def write_bad(self, reasons: dict[str, str]) -> None:
        """Note the images that the parts leave out."""
        with atomic_write(self.parts / "bad_images.json") as temporary:
            temporary.write_text(json.dumps(reasons))

    def finish(self, facts: dict[str, Any]) -> None:
        """Join the parts to one table and write what it was made from beside it."""
        with atomic_write(self.path) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
            for part in sorted(self.parts.glob("[0-9]*.parquet")):
                writer.write_table(pq.read_table(part))
        with atomic_write(self.facts) as temporary:
            content = {"plan": self.plan, **facts, "versions": package_versions()}
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False))
        shutil.rmtree(self.parts)


@torch.no_grad()
def _similarity(
    batch: Batch, mllm: MLLM, targets: Sequence[Target], banks: dict[str, ProbeBank], tokens: Tokens
) -> list[Score]:
    truth = {target.name: target.encode(batch.pixels[target.name]) for target in targets}
    inputs = batch.inputs.to(mllm.device)
    scores: list[Score] = []

    def score(name: str, layer: int | None, source: str, prediction: Tensor) -> None:
        tensors = prediction, truth[name], banks[name].mean
        if mllm.device.type == "mps":  # which has no float64
            tensors = prediction.cpu(), truth[name].cpu(), banks[name].mean.cpu()
        by_metric = similarity(*tensors)
        scores.extend(Score(name, layer, source, metric, values) for metric, values in by_metric.items())

    def score_layer(layer: int, states: Tensor, mask: Tensor) -> None:
        grid = inputs.places(layer, states.shape[1])
        for name, bank in banks.items():
            with autocast(mllm.device):
                prediction = bank(layer, states, mask, grid)
            score(name, layer, "probe", prediction)
            if len(batch.names) > 1:
                score(name, layer, "shuffled", prediction.roll(1, dims=0))

    for name, bank in banks.items():
        score(name, None, "mean", bank.mean.expand_as(truth[name]))
    layers = next(iter(banks.values())).layers
    mllm.visit(inputs, score_layer, layers, tokens=tokens)
    return scores


def _batches(num_images: int, size: int) -> list[list[int]]:
    """Cut the images into batches of `size`; a single one left over joins the batch before it."""
    batches = [list(range(i, min(i + size, num_images))) for i in range(0, num_images, size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def _plan(settings: EvaluateSettings, images: ImageSet) -> dict[str, Any]:
    return {
        "images": settings.images,
        "num_images": len(images),
        "names": images.fingerprint(),
        "batch_size": settings.batch_size,
        "protocol": PROTOCOL,
    }
