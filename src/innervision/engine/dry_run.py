"""innervision train … --dry-run, and evaluate: what they would take, before anything is loaded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch

from innervision.config import VISION, TrainSettings, parse_layers
from innervision.data import find_images
from innervision.engine.estimate import Estimate, estimate, estimate_scoring
from innervision.engine.memory import in_units
from innervision.engine.mesh import Mesh
from innervision.engine.processes import Rank
from innervision.engine.run import RunFolder
from innervision.engine.solver import FRACTIONS
from innervision.engine.steps import count_images, plan_steps
from innervision.errors import require
from innervision.mllm import MLLM, Inputs
from innervision.mllm.split import check_split
from innervision.original.protocol import PROTOCOLS
from innervision.probes import ProbeBank, read_info
from innervision.registry import find
from innervision.targets import load_targets
from innervision.tasks.evaluation import Evaluation

CARDS = (24, 48, 80, 141)
"""Memory of common accelerators in GB, of which a tenth is left free."""

SIDES = (640, 480)
"""Width and height of the image that stands for all, as most of COCO's are."""


@dataclass
class _Source:
    """An MLLM as a bank of probes sees it, of which only the configuration is known."""

    name: str
    revision: str | None
    num_layers: int
    widths: dict[int, int]

    def width(self, layer: int) -> int:
        return self.widths[min(layer, 0)]


def dry_run(settings: TrainSettings, tflops: float | None = None, *, trust_remote_code: bool = False) -> str:
    """Say what a run would take in each process, as a table.

    Args:
        settings: of the run.
        tflops: operations that a device does in a second, in 10¹².
        trust_remote_code: run model code that comes with the MLLM's checkpoint.

    Raises:
        InnerVisionError: a configuration or the images cannot be had, or nothing is known of such a run.
    """
    require(tflops is None or tflops > 0, f"tflops must be above 0, not {tflops}")
    images = find_images(settings.images)
    number = len(images) if settings.limit is None else min(len(images), settings.limit)
    split = settings.split_mllm
    mllm = _mllm(settings, settings.device, split, trust_remote_code)
    targets = load_targets(settings.targets, device="meta")
    source = _source(mllm)
    layers = parse_layers(settings.layers, mllm.num_layers, VISION in source.widths)
    batch = min(settings.micro_batch_size, number)
    inputs = _inputs(mllm, settings, "train", batch)

    def estimate_of(layers: Sequence[int]) -> Estimate:
        with torch.device("meta"):
            banks = {target.name: ProbeBank.for_models(source, target, layers, settings.probe) for target in targets}
        sum_dtype = torch.float64 if settings.device == "cpu" else torch.float32
        return estimate(mllm, targets, banks, inputs, sum_dtype, len(FRACTIONS), split)

    whole = estimate_of(layers)
    part = whole if split == 1 else estimate_of(Mesh(layers=Rank(0, split)).own(layers))  # the first has the most
    exact = find("probes", settings.probe.kind).exact
    epochs = 1 if exact else settings.epochs
    steps = plan_steps(
        number,
        epochs=epochs,
        seed=settings.seed,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        milestones=count_images(FRACTIONS, number) if exact else [],
    )
    lines = [
        *_memory(part, batch, "micro_batch_size", "their sums" if exact else "their gradients and AdamW's state"),
        "",
        f"{number:,} images, {settings.batch_size} a step of all processes: {len(steps):,} steps in "
        f"{epochs} {'epoch' if epochs == 1 else 'epochs'}",
        *_operations(whole, number * epochs, tflops),
        f"on disk: {in_units(whole.probes, 'B')} of probes, and {in_units(whole.state, 'B')} to resume while it works",
    ]
    return "\n".join(lines)


def dry_run_scoring(
    path: str | Path, evaluation: Evaluation, tflops: float | None = None, *, trust_remote_code: bool = False
) -> str:
    """Say what scoring a run would take in each process, as a table. Decoding by the experts' heads is left out.

    Args:
        path: of the run's folder.
        evaluation: what would be scored, on which images.
        tflops: operations that a device does in a second, in 10¹².
        trust_remote_code: run model code that comes with the MLLM's checkpoint.

    Raises:
        InnerVisionError: a configuration cannot be had, or nothing is known of such a run.
    """
    run, settings = RunFolder(path), evaluation.settings
    trained = run.trained_settings()
    require(tflops is None or tflops > 0, f"tflops must be above 0, not {tflops}")
    names = evaluation.choose({name: expert["kind"] for name, expert in run.record().get("experts", {}).items()})
    images = len(evaluation.images) if settings.limit is None else min(len(evaluation.images), settings.limit)
    split = settings.split_mllm
    mllm = _mllm(trained, settings.device, split, trust_remote_code)
    targets = load_targets(trained.targets, only=names, device="meta", head=evaluation.head)
    probes = {target.name: read_info(run.probes(target.name)) for target in targets}
    layers = [*probes[names[0]][0].widths]
    batch = min(settings.batch_size, images)
    inputs = _inputs(mllm, trained, evaluation.name, batch)

    def estimate_of(layers: Sequence[int]) -> Estimate:
        with torch.device("meta"):
            banks = {name: ProbeBank(info.only(layers), probe) for name, (info, probe) in probes.items()}
        return estimate_scoring(mllm, targets, banks, inputs, split)

    whole = estimate_of(layers)
    part = whole if split == 1 else estimate_of(Mesh(layers=Rank(0, split)).own(layers))
    batches = math.ceil(images / settings.batch_size)
    lines = [
        *_memory(part, batch, "batch_size"),
        "",
        f"{images:,} images, {settings.batch_size} at once: {batches:,} {'batch' if batches == 1 else 'batches'}",
        *_operations(whole, images, tflops),
    ]
    if evaluation.head:
        lines.append(
            f"on top: for each image and each of {len(layers)} layers the experts' heads decode the prediction and the "
            "floors; what that takes is not known before"
        )
    return "\n".join(lines)


def _mllm(settings: TrainSettings, device: str | None, split: int, trust_remote_code: bool) -> MLLM:
    """Make the MLLM of a run without weights, as it would be on a device, held by so many processes."""
    require(settings.quantization is None, f"a dry run does not know models quantized to {settings.quantization}")
    mllm = MLLM.load(
        settings.mllm,
        revision=settings.revision,
        dtype=getattr(torch, settings.dtype or ("float32" if device == "cpu" else "bfloat16")),
        device="meta",
        template=settings.template,
        trust_remote_code=trust_remote_code,
    )
    if split > 1:
        check_split(mllm.model, split, mllm.name)
    return mllm


def _inputs(mllm: MLLM, settings: TrainSettings, script: str, batch: int) -> Inputs:
    """Make the MLLM's inputs of a batch of images of the usual size."""
    prepare = PROTOCOLS[settings.protocol].inputs(mllm.builder, settings.prompt, script)
    return prepare([PIL.Image.new("RGB", SIDES, (128, 128, 128))] * batch)


def _source(mllm: MLLM) -> _Source:
    """Say what the configuration tells of the layers."""
    config = mllm.model.config
    widths = {0: config.get_text_config(decoder=True).hidden_size}
    vision = getattr(config, "vision_config", None)
    if isinstance(width := getattr(vision, "hidden_size", None), int):
        widths[VISION] = width
    return _Source(mllm.name, mllm.revision, mllm.num_layers, widths)


def _memory(found: Estimate, batch: int, setting: str, fitting: str = "") -> list[str]:
    """Make the table of memory; `fitting` says what probes need to be fitted, where they are."""
    rows = {
        **{f"weights: {name}": size for name, size in found.weights.items()},
        "probes": found.probes,
        **({fitting: found.fitting} if fitting else {}),
        f"pixels and features of {batch} images": found.kept,
    }
    largest = max(found.activations, key=found.activations.__getitem__)
    rows |= {f"activations, at most: {largest}": found.activations[largest], "together": found.total}
    biggest = max((name for name in rows if name != "together"), key=rows.__getitem__)
    width = max(map(len, rows))
    fixed, per_image = found.total - found.per_batch, found.per_batch / batch
    fits = {card: _power_of_two((0.9e9 * card - fixed) / per_image) for card in CARDS}
    return [
        "memory of each process",
        *(f"  {name:<{width}}  {in_units(size, 'B'):>9}" for name, size in rows.items()),
        f"the largest part: {biggest}",
        f"{setting} that fits: " + ", ".join(f"{size or 'none'} in {card} GB" for card, size in fits.items()),
    ]


def _operations(found: Estimate, images: int, tflops: float | None) -> list[str]:
    total = sum(found.operations.values())
    parts = ", ".join(f"{name} {in_units(each, 'FLOP')}" for name, each in found.operations.items())
    lines = [f"operations for an image: {in_units(total, 'FLOP')} ({parts})"]
    if tflops is not None:
        hours = images * total / (tflops * 1e12) / 3600
        lines.append(f"at {tflops:g} TFLOP/s: {hours:.3g} hours of one device, shared out over all processes")
    return lines


def _power_of_two(number: float) -> int:
    """Give the largest power of two that is not above a number; 0 for less than one."""
    return 1 << (int(number).bit_length() - 1) if number >= 1 else 0
