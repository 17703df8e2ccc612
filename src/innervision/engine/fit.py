"""Trains probes for all targets on all layers in one pass of the frozen MLLM.

innervision train --mllm llava-hf/llava-1.5-7b-hf --targets depth,seg,gen --images coco/train2017 --out runs/a
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from innervision.checkpoints.identity import absolute
from innervision.config import VISION, TrainSettings, parse_layers
from innervision.data import ImageSet, find_images
from innervision.data.loader import BadImages, load_batches
from innervision.data.sources import short_hash
from innervision.engine.descent import Descent
from innervision.engine.environment import made_by
from innervision.engine.interrupt import Stopped, stop_signals
from innervision.engine.learner import Learner
from innervision.engine.log import TrainingLog
from innervision.engine.mesh import Mesh
from innervision.engine.processes import Rank, join_processes
from innervision.engine.progress import Laps, Phases
from innervision.engine.run import FREE_TO_CHANGE, RunFolder
from innervision.engine.session import BLANK_COLOUR, BLANK_SIZE, Session, memory_errors
from innervision.engine.solver import FRACTIONS, Solver
from innervision.engine.steps import Step, count_images, plan_steps
from innervision.errors import InnerVisionError, require
from innervision.files import locked
from innervision.mllm import MLLM
from innervision.probes import BankInfo, ProbeBank
from innervision.registry import find
from innervision.targets import parse_targets
from innervision.targets.target import Target
from innervision.terminal import tell, tell_left_out

FEW_STEPS = 20
"""Optimizer steps below which nothing can be concluded from what probes do not find."""

OF_TRAINED_PROBES = ("epochs", "lr", "weight_decay", "warmup", "clip", "shard_probes")
"""Settings that exact probes do not have."""


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

    On a CPU the same settings give the same probes, bit for bit, also when the run was stopped and resumed. Where
    torchrun or accelerate launch started several processes, each takes a share of every step's images, and the first
    one writes; the probes are those of one process but for rounding.

    Args:
        settings: of the run.
        resume: go on where the run in `settings.out` was stopped.
        mllm: instead of the one that the settings name.
        targets: instead of those that the settings name.
        trust_remote_code: run model code that comes with the MLLM's checkpoint.
        progress: show a bar.

    Returns:
        The trained bank of each target, by name, each probe on the device of its layer; of several processes the first
        has them.

    Raises:
        InnerVisionError: anything that the user can put right, before work starts where possible; of several processes
            one has failed, or is gone.
        Stopped: by Ctrl-C, SIGTERM or SIGHUP, after the state was saved.
    """
    laps = Laps()
    with join_processes(settings.device) as rank, ExitStack() as stack:
        settings = _with_absolute_paths(settings)
        rank.require_alike({**asdict(settings), "device": None, "resume": resume, **made_by()})
        rank.first(lambda: stack.enter_context(locked(RunFolder(settings.out).lock)))
        with memory_errors("lower micro_batch_size, or probe fewer layers"):
            plan = _plan(settings, resume, Mesh.of(rank, settings.split_mllm), mllm, targets, trust_remote_code, laps)
            if resume and rank.first(lambda: _is_finished(plan)):
                return _finished(plan) if plan.leads else {}
            _loop(plan, progress)
            return _finish(plan)


@dataclass
class _Plan:
    """What is trained: the run, its models and images, and the steps."""

    run: RunFolder
    mesh: Mesh
    session: Session
    learner: Learner
    images: ImageSet
    bad: BadImages
    steps: list[Step]
    laps: Laps
    log: TrainingLog | None
    """Of the first process."""
    record: dict[str, Any]

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.mesh.all.index == 0


def _plan(
    settings: TrainSettings,
    resume: bool,
    mesh: Mesh,
    mllm: MLLM | None,
    targets: Sequence[Target] | None,
    trust_remote_code: bool,
    laps: Laps,
) -> _Plan:
    """Check what can be checked before models are loaded, load them, and go back to what was saved, if anything."""
    rank = mesh.all
    run = RunFolder(settings.out)
    exact = _is_exact(settings)

    def look() -> tuple[ImageSet, BadImages]:
        run.remove_half_written()
        run.check_free(settings, resume)
        images = find_images(settings.images)
        if settings.limit is not None:
            images = images.sample(settings.limit, settings.seed)
        bad = BadImages(images, settings.max_bad)
        bad.look_ahead(images)
        return images, bad

    images, bad = rank.first(look)  # what a shared drive shows may differ from machine to machine
    log = TrainingLog(run.log, settings) if rank.index == 0 else None
    for note in images.notes:
        tell(note)
    tell_left_out(bad.reasons)
    session = Session.load(
        settings,
        "train",
        mllm=mllm,
        targets=targets,
        device=rank.device or settings.device,
        split=settings.split_mllm,
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
    infos = {target.name: BankInfo.of(mllm, target, layers) for target in session.targets}
    own = mesh.own(layers)
    banks = {name: session.place(ProbeBank(info.only(own), probe, seed=settings.seed)) for name, info in infos.items()}
    milestones = count_images(FRACTIONS, len(images)) if exact else []
    steps = plan_steps(
        len(images),
        epochs=1 if exact else settings.epochs,
        seed=settings.seed,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        milestones=milestones,
        rank=mesh.images,
    )
    learner: Learner
    if exact:
        seen = accumulate(step.size for step in steps)
        learner = solver = Solver(
            session,
            banks,
            layers,
            images.names,
            {number for number, each in enumerate(seen, 1) if each in milestones},
            mesh,
        )
        tell(f"exact probes: their sums take {solver.cost}")
    else:
        if len(steps) < FEW_STEPS:
            tell(
                f"warning: {len(images):,} images in batches of {settings.batch_size} make {len(steps)} optimizer "
                "steps, too few to learn from: lower batch_size or raise epochs"
            )
        learner = Descent(session, banks, layers, len(steps), mesh)
    record: dict[str, Any] = {
        "mllm": {"name": mllm.name, "revision": mllm.revision, "num_layers": mllm.num_layers},
        "experts": {
            target.name: {"kind": target.kind, "name": target.expert, "revision": target.revision}
            for target in session.targets
        },
        "layers": list(layers),
        "images": {"found": len(images), "missing": len(images.missing), "files": rank.first(images.fingerprint)},
        "parameters": {name: sum(mesh.layers.exchange(bank.num_parameters())) for name, bank in banks.items()},
        "processes": rank.count,
        "setup": session.setup(),
    }
    rank.require_alike({name: record[name] for name in ("mllm", "experts", "layers")})
    fixed = {name: value for name, value in asdict(settings).items() if name not in FREE_TO_CHANGE}
    learner.run = short_hash([fixed, *(record[key] for key in ("mllm", "experts", "layers", "images"))])
    if resume:
        run.check_same(record)
        if rank.first(run.state.exists):
            learner.restore(run.state)
        rank.require_alike({"the saved step": learner.step})
        bad.add(list(learner.bad.items()))
        if notes := [*(run.record().get("notes") or []), *_changes(run, settings, rank, learner.step)]:
            record["notes"] = notes
    return _Plan(run, mesh, session, learner, images, bad, steps, laps, log, record)


def _have_places(session: Session) -> bool:
    """Tell whether tokens that probes may read in the decoder stand somewhere in the image."""
    inputs, _ = session.prepare(Image.new("RGB", BLANK_SIZE, BLANK_COLOUR))
    places = session.place_finder.find(inputs.to(session.mllm.device), [0])[0]
    visible = inputs.visible(session.settings.tokens).to(places.device)
    return bool((places.isfinite().all(dim=2) & visible).any())


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


def _changes(run: RunFolder, settings: TrainSettings, rank: Rank, step: int) -> list[str]:
    """Note, and tell, what changes in a run that is resumed after a step and shows in its result."""
    names = ("micro_batch_size", "split_mllm")
    before = {name: getattr(run.settings(), name) for name in names}
    before["the number of processes"] = run.record().get("processes", 1)
    now = {name: getattr(settings, name) for name in names} | {"the number of processes": rank.count}
    notes = [
        f"{name} is {now[name]} from step {step + 1} on, {before[name]} before: the probes differ from those of a run "
        "that kept it by rounding"
        for name in now
        if now[name] != before[name]
    ]
    for note in notes:
        tell(note)
    return notes


def _with_absolute_paths(settings: TrainSettings) -> TrainSettings:
    """Name what lies on the disk so that the run can be used from any folder."""
    targets = ",".join(map(str, parse_targets(settings.targets)))
    images = str(Path(settings.images).expanduser().resolve())
    return replace(settings, mllm=absolute(settings.mllm), targets=targets, images=images)


def _is_finished(plan: _Plan) -> bool:
    return all(plan.run.probes(target.name).exists() for target in plan.session.targets)


def _finished(plan: _Plan) -> dict[str, ProbeBank]:
    """Read the probes of a run that is done already."""
    banks = {target.name: ProbeBank.load(plan.run.probes(target.name)) for target in plan.session.targets}
    for target in plan.session.targets:
        banks[target.name].check(plan.session.mllm, target)
        plan.session.place(banks[target.name])
    return banks


def _loop(plan: _Plan, progress: bool) -> None:
    """Take the steps that are left, and save now and then.

    Raises:
        Stopped: by Ctrl-C or SIGTERM to any of the processes, after the state was saved.
    """
    run, learner, settings, rank = plan.run, plan.learner, plan.session.settings, plan.mesh.all
    total, done_before = (sum(step.size for step in steps) for steps in (plan.steps, plan.steps[: learner.step]))
    learner.phases = Phases(learner.work(total - done_before), shown=progress and plan.leads)
    phase, *_ = learner.phases.left
    if plan.leads:
        run.write_settings(settings, plan.record)
        run.write_bad_images(plan.bad.reasons)
    order = [batch for step in plan.steps for batch in step.batches]
    loading = load_batches(
        plan.session.batches(plan.images, order),
        range(sum(len(step.batches) for step in plan.steps[: learner.step]), len(order)),
        workers=settings.workers,
        pin_memory=plan.session.mllm.device.type == "cuda",
    )
    writing = plan.log.open(learner.step) if plan.log else nullcontext()
    bar = learner.phases.bar(phase, total, "images", done_before)
    saved = time.monotonic()
    with bar, writing as log, stop_signals("after this step") as stop, loading as loader:
        rank.spread(stop)
        for step in plan.steps[learner.step :]:
            began = time.perf_counter()
            bad = []
            with learner.phases.work(phase, step.size):
                for _ in step.batches:
                    batch = next(loader)
                    bad += batch.bad
                    plan.mesh.require_same_images(batch.names)
                    learner.learn(batch)
                learner.keep_pace(step.turns - len(step.batches))
                due = time.monotonic() - saved >= 60 * settings.save_minutes
                told_by_all = rank.exchange((bad, stop.asked, due))
                stopping, due = any(asked for _, asked, _ in told_by_all), told_by_all[0][2]
                _leave_out(plan, [each for some, _, _ in told_by_all for each in some])
                told = learner.finish_step()
            pace = round(step.size / (time.perf_counter() - began), 3)
            if log:
                log.write({"step": learner.step, "of": len(plan.steps), "images_per_second": pace, **told})
            if losses := told.get("loss"):
                bar.set_postfix({name: f"{sum(each.values()) / len(each):.4f}" for name, each in losses.items()})
            bar.update(step.size)
            done = learner.step == len(plan.steps)
            if done or stopping or due:
                learner.bad = plan.bad.reasons
                _count_time(plan)
                learner.save(run.state)
                saved = time.monotonic()
            if stopping and not done:
                raise Stopped(f"stopped after step {learner.step} of {len(plan.steps)}; --resume resumes it")


def _leave_out(plan: _Plan, bad: Sequence[tuple[str, str]]) -> None:
    """Count and tell (name, reason) of the images of a step that were left out.

    Raises:
        InnerVisionError: there are too many.
    """
    try:
        new = plan.bad.add(bad)
    finally:
        if bad and plan.leads:
            plan.run.write_bad_images(plan.bad.reasons)
    for name in new:
        tell(f"left out {name}: {plan.bad.reasons[name]}")


def _count_time(plan: _Plan) -> None:
    """Add what this call has taken since the last time."""
    devices = plan.mesh.all.count * plan.session.count_devices(plan.learner.layers)
    plan.learner.took = plan.learner.took.plus(plan.laps.lap(), devices)


def _finish(plan: _Plan) -> dict[str, ProbeBank]:
    """Write the probes.

    Raises:
        InnerVisionError: nothing was learnt, since no image could be read.
    """
    run, learner, settings = plan.run, plan.learner, plan.session.settings
    require(learner.count > 0, f"nothing was learnt: none of the images in {settings.images} could be read")
    facts = {
        "prompt": settings.prompt,
        "tokens": settings.tokens,
        "protocol": settings.protocol,
        "images": learner.count,
    }
    found = learner.finish()
    banks = learner.whole_banks()
    if not plan.leads:
        return {}
    _count_time(plan)
    run.write_settings(settings, plan.record | {"took": learner.took.rounded()})
    for name, bank in banks.items():
        bank.save(run.probes(name), facts | found[name])
    run.state.unlink(missing_ok=True)
    return banks
