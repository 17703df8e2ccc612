"""Trains probes for all targets on all layers in one pass of the frozen MLLM.

innervision train --mllm llava-hf/llava-1.5-7b-hf --targets depth,seg,gen --images coco/train2017 --out runs/a
"""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from innervision.checkpoints.identity import absolute
from innervision.config import VISION, TrainSettings, parse_layers
from innervision.data import ImageSet, find_images
from innervision.data.loader import BadImages, load_batches
from innervision.data.sources import short_hash
from innervision.engine.descent import Descent
from innervision.engine.interrupt import Stopped, stop_signals
from innervision.engine.learner import Learner
from innervision.engine.log import TrainingLog
from innervision.engine.run import FREE_TO_CHANGE, RunFolder
from innervision.engine.session import BLANK_COLOUR, BLANK_SIZE, Session, memory_errors
from innervision.engine.solver import Solver
from innervision.errors import InnerVisionError, require
from innervision.files import locked
from innervision.mllm import MLLM
from innervision.probes import ProbeBank
from innervision.registry import find
from innervision.targets import parse_targets
from innervision.targets.target import Target
from innervision.terminal import tell, tell_left_out

FEW_STEPS = 20
"""Optimizer steps below which nothing can be concluded from what probes do not find."""

OF_TRAINED_PROBES = ("epochs", "lr", "weight_decay", "warmup", "clip")
"""Settings that exact probes do not have."""

Step = list[list[int]]
"""The images of one optimizer step: for each of its micro-batches their indices."""


def fit(
    settings: TrainSettings,
    *,
    resume: bool = False,
    mllm: MLLM | None = None,
    targets: Sequence[Target] | None = None,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> dict[str, ProbeBank]:
    """Train the probes of a run and write its folder.

    On a CPU the same settings give the same probes, bit for bit, also when the run was stopped and resumed.

    Args:
        settings: of the run.
        resume: go on where the run in `settings.out` was stopped.
        mllm: instead of the one that the settings name.
        targets: instead of those that the settings name.
        trust_remote_code: run model code that comes with the MLLM's checkpoint.
        progress: show a bar.

    Returns:
        The trained bank of each target, by name, each probe on the device of its layer.

    Raises:
        InnerVisionError: anything that the user can put right, before work starts where possible.
        Stopped: by Ctrl-C, SIGTERM or SIGHUP, after the state was saved.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InnerVisionError("training runs in one process; start it without torchrun or accelerate launch")
    with locked(RunFolder(settings.out).lock), memory_errors("lower micro_batch_size, or probe fewer layers"):
        plan = _plan(settings, resume, mllm, targets, trust_remote_code)
        if resume and (finished := _finished(plan)):
            return finished
        _loop(plan, progress)
        return _finish(plan, progress)


@dataclass
class _Plan:
    """What is trained: the run, its models and images, and the steps."""

    run: RunFolder
    session: Session
    learner: Learner
    images: ImageSet
    bad: BadImages
    steps: list[Step]
    log: TrainingLog
    record: dict[str, Any]


def _plan(
    settings: TrainSettings,
    resume: bool,
    mllm: MLLM | None,
    targets: Sequence[Target] | None,
    trust_remote_code: bool,
) -> _Plan:
    """Check what can be checked before models are loaded, load them, and go back to what was saved, if anything."""
    settings = _with_absolute_paths(settings)
    run = RunFolder(settings.out)
    run.remove_half_written()
    run.check_free(settings, resume)
    epochs = 1 if _is_exact(settings) else settings.epochs
    log = TrainingLog(run.log, settings)
    images = find_images(settings.images)
    if settings.limit is not None:
        images = images.sample(settings.limit, settings.seed)
    bad = BadImages(images, settings.max_bad)
    bad.look_ahead(images)
    for note in images.notes:
        tell(note)
    tell_left_out(bad.reasons)
    session = Session.load(
        settings,
        "train",
        mllm=mllm,
        targets=targets,
        device=settings.device,
        trust_remote_code=trust_remote_code,
    )
    mllm = session.mllm
    layers = parse_layers(settings.layers, mllm.num_layers, mllm.has_vision_layer())
    if settings.layers == "all" and layers[0] != VISION:
        tell(f"{mllm.name} shows no layer -1 (vision): probing layers 0 to {mllm.num_layers}")
    probe = settings.probe
    if probe.kind == "ridge" and any(target.num_tokens > 1 for target in session.targets) and not _have_places(session):
        tell(
            f"the tokens that are read of {mllm.name} stand nowhere in the image: each cell of a target is read from "
            "their mean, by a map of its own (probe.kind=pooled)"
        )
        probe = replace(probe, kind="pooled")
    banks = {
        target.name: session.place(ProbeBank.for_models(mllm, target, layers, probe, seed=settings.seed))
        for target in session.targets
    }
    steps = [step for epoch in range(epochs) for step in _steps(len(images), epoch, settings)]
    learner = _learner(session, banks, layers, images, steps)
    record: dict[str, Any] = {
        "mllm": {"name": mllm.name, "revision": mllm.revision, "num_layers": mllm.num_layers},
        "experts": {
            target.name: {"kind": target.kind, "name": target.expert, "revision": target.revision}
            for target in session.targets
        },
        "layers": list(layers),
        "images": {"found": len(images), "missing": len(images.missing), "files": images.fingerprint()},
        "parameters": {name: bank.num_parameters() for name, bank in banks.items()},
        "setup": session.setup(),
    }
    fixed = {name: value for name, value in asdict(settings).items() if name not in FREE_TO_CHANGE}
    learner.run = short_hash([fixed, *(record[key] for key in ("mllm", "experts", "layers", "images"))])
    if resume:
        run.check_same(record)
        record["notes"] = run.record().get("notes") or []
        if run.state.exists():
            learner.restore(run.state)
        bad.add(list(learner.bad.items()))
        record["notes"] += _changes(run.settings(), settings, learner.step)
    return _Plan(run, session, learner, images, bad, steps, log, record)


def _have_places(session: Session) -> bool:
    """Tell whether tokens that probes may read in the decoder stand somewhere in the image."""
    inputs, _ = session.prepare(Image.new("RGB", BLANK_SIZE, BLANK_COLOUR))
    places = session.place_finder.find(inputs.to(session.mllm.device), [0])[0]
    visible = inputs.visible(session.settings.tokens).to(places.device)
    return bool((places.isfinite().all(dim=2) & visible).any())


def _learner(
    session: Session, banks: dict[str, ProbeBank], layers: Sequence[int], images: ImageSet, steps: Sequence[Step]
) -> Learner:
    """Give what fits probes of the run's kind, and tell what the user should know of it before it begins."""
    if _is_exact(session.settings):
        solver = Solver(session, banks, layers, images.names)
        tell(f"exact probes: their sums take {solver.cost}")
        return solver
    if len(steps) < FEW_STEPS:
        tell(
            f"warning: {len(images):,} images in batches of {session.settings.batch_size} make {len(steps)} optimizer "
            "steps, too few to learn from: lower batch_size or raise epochs"
        )
    return Descent(session, banks, layers, num_steps=len(steps))


def _is_exact(settings: TrainSettings) -> bool:
    """Tell whether the probes are solved, not trained.

    Raises:
        InnerVisionError: they are, and the settings hold something that only trained probes have.
    """
    if not getattr(find("probes", settings.probe.kind), "exact", False):
        return False
    defaults = {field.name: field.default for field in fields(TrainSettings)}
    if given := [name for name in OF_TRAINED_PROBES if getattr(settings, name) != defaults[name]]:
        raise InnerVisionError(
            f"{settings.probe.kind} probes are solved in one pass, without {', '.join(given)}: leave that out, or "
            "train probes with probe.kind=resampler"
        )
    return True


def _changes(before: TrainSettings, now: TrainSettings, step: int) -> list[str]:
    """Note, and tell, what changes in a run that is resumed after a step and shows in its result."""
    if before.micro_batch_size == now.micro_batch_size:
        return []
    sizes = f"{now.micro_batch_size} from step {step + 1} on, {before.micro_batch_size} before"
    note = f"micro_batch_size is {sizes}: the probes differ from those of a run with one size by rounding"
    tell(note)
    return [note]


def _with_absolute_paths(settings: TrainSettings) -> TrainSettings:
    """Name what lies on the disk so that the run can be used from any folder."""
    targets = ",".join(map(str, parse_targets(settings.targets)))
    images = str(Path(settings.images).expanduser().resolve())
    return replace(settings, mllm=absolute(settings.mllm), targets=targets, images=images)


def _finished(plan: _Plan) -> dict[str, ProbeBank] | None:
    """Read the probes of a run that is done already."""
    if not all(plan.run.probes(target.name).exists() for target in plan.session.targets):
        return None
    banks = {target.name: ProbeBank.load(plan.run.probes(target.name)) for target in plan.session.targets}
    for target in plan.session.targets:
        banks[target.name].check(plan.session.mllm, target)
        plan.session.place(banks[target.name])
    return banks


def _loop(plan: _Plan, progress: bool) -> None:
    """Take the steps that are left, and save now and then.

    Raises:
        Stopped: by Ctrl-C or SIGTERM, after the state was saved.
    """
    run, learner, settings = plan.run, plan.learner, plan.session.settings
    run.write_settings(settings, plan.record)
    run.write_bad_images(plan.bad.reasons)
    order = [*chain.from_iterable(plan.steps)]
    start = sum(map(len, plan.steps[: learner.step]))
    loading = load_batches(
        plan.session.batches(plan.images, order),
        range(start, len(order)),
        workers=settings.workers,
        pin_memory=plan.session.mllm.device.type == "cuda",
    )
    bar = tqdm(
        total=sum(map(len, order)),
        initial=sum(map(len, order[:start])),
        desc="1 of 2: reading layers" if _is_exact(settings) else "training",
        unit=" images",
        disable=not progress,
        dynamic_ncols=True,
    )
    saved = time.monotonic()
    with bar, plan.log.open(learner.step) as log, stop_signals("after this step") as stop, loading as loader:
        for step in plan.steps[learner.step :]:
            began = time.perf_counter()
            for _ in step:
                batch = next(loader)
                try:
                    new = plan.bad.add(batch.bad)
                finally:
                    if batch.bad:
                        run.write_bad_images(plan.bad.reasons)
                for name in new:
                    tell(f"left out {name}: {plan.bad.reasons[name]}")
                learner.learn(batch)
            told = learner.finish_step()
            size = sum(map(len, step))
            pace = round(size / (time.perf_counter() - began), 3)
            log.write({"step": learner.step, "of": len(plan.steps), "images_per_second": pace, **told})
            if losses := told.get("loss"):
                bar.set_postfix({name: f"{sum(each.values()) / len(each):.4f}" for name, each in losses.items()})
            bar.update(size)
            done = learner.step == len(plan.steps)
            if done or stop.asked or time.monotonic() - saved >= 60 * settings.save_minutes:
                learner.bad = plan.bad.reasons
                learner.save(run.state)
                saved = time.monotonic()
            if stop.asked and not done:
                raise Stopped(f"stopped after step {learner.step} of {len(plan.steps)}; --resume resumes it")


def _finish(plan: _Plan, progress: bool) -> dict[str, ProbeBank]:
    """Write the probes.

    Raises:
        InnerVisionError: nothing was learnt, since no image could be read.
    """
    run, learner, settings = plan.run, plan.learner, plan.session.settings
    run.write_bad_images(plan.bad.reasons)
    require(learner.count > 0, f"nothing was learnt: none of the images in {settings.images} could be read")
    facts = {
        "prompt": settings.prompt,
        "tokens": settings.tokens,
        "protocol": settings.protocol,
        "images": learner.count,
    }
    found = learner.finish(progress)
    for name, bank in learner.banks.items():
        bank.mean.copy_(learner.mean(name))
        bank.save(run.probes(name), facts | found[name])
    run.state.unlink(missing_ok=True)
    return learner.banks


def _steps(num_images: int, epoch: int, settings: TrainSettings) -> list[Step]:
    """Give the steps of an epoch, in which each image comes up once."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    shuffled = torch.randperm(num_images, generator=generator).tolist()
    steps = [shuffled[i : i + settings.batch_size] for i in range(0, num_images, settings.batch_size)]
    size = settings.micro_batch_size
    return [[step[i : i + size] for i in range(0, len(step), size)] for step in steps]
