"""Trains probes for all targets on all layers in one pass of the frozen MLLM.

innervision train --mllm llava-hf/llava-1.5-7b-hf --targets depth,seg,gen --images coco/train2017 --out runs/a
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from innervision.config import VISION, TrainSettings, parse_layers
from innervision.data import ImageSet, find_images
from innervision.data.loader import BadImages, Batch, load_batches
from innervision.engine.run import RunFolder
from innervision.engine.session import batches_of, load_experts, load_mllm
from innervision.errors import InnerVisionError, first_line
from innervision.files import atomic_write
from innervision.mllm import MLLM
from innervision.probes import ProbeBank
from innervision.targets.target import Target


class Stopped(InnerVisionError):
    """Training was asked to stop and has saved its state."""


def fit(
    settings: TrainSettings,
    *,
    resume: bool = False,
    mllm: MLLM | None = None,
    targets: Sequence[Target] | None = None,
    progress: bool = True,
) -> dict[str, ProbeBank]:
    """Train the probes of a run and write its folder.

    On a CPU the same settings give the same probes, bit for bit, also when the run was stopped and resumed.

    Args:
        settings: of the run.
        resume: go on where the run in `settings.out` was stopped.
        mllm: instead of the one that the settings name.
        targets: instead of those that the settings name.
        progress: show a bar.

    Returns:
        The trained bank of each target, by name.

    Raises:
        InnerVisionError: anything that the user can put right, before work starts where possible.
        Stopped: by Ctrl-C or SIGTERM, after the state was saved.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InnerVisionError("training runs in one process; start it without torchrun or accelerate launch")
    run = RunFolder(settings.out)
    run.check_free(settings, resume)
    trackers = _trackers(settings, run.path)
    images = find_images(settings.images)
    bad = BadImages(images, settings.max_bad)
    for name in bad.look_ahead(images):
        tqdm.write(f"left out {name}: {bad.reasons[name]}")
    mllm = mllm or load_mllm(settings)
    layers = parse_layers(settings.layers, mllm.num_layers, mllm.has_vision_layer())
    targets = targets or load_experts(settings, mllm)
    if settings.layers == "all" and layers[0] != VISION:
        tqdm.write(f"{mllm.name} shows no layer -1 (vision): probing layers 0 to {mllm.num_layers}")
    banks = {
        target.name: ProbeBank(mllm, target, layers, settings.probe, seed=settings.seed).to(mllm.device)
        for target in targets
    }
    steps = [step for epoch in range(settings.epochs) for step in _steps(len(images), epoch, settings)]
    learner = Learner(mllm, targets, banks, layers, settings, num_steps=len(steps))
    record = _record(mllm, targets, layers, images, banks)
    if resume:
        run.check_same(record)
        if all(run.probes(name).exists() for name in banks):
            return {target.name: ProbeBank.load(run.probes(target.name), mllm, target) for target in targets}
        if run.state.exists():
            learner.restore(run.state)
        bad.add(list(learner.bad.items()))
    track = _start(trackers, settings)
    run.write_settings(settings, record)
    if bad.reasons:
        run.write_bad_images(bad.reasons)
    run.log.parent.mkdir(parents=True, exist_ok=True)
    _cut_log(run.log, learner.step)

    order = [micro for step in steps for micro in step]
    start = sum(len(step) for step in steps[: learner.step])
    batches = batches_of(images, order, mllm, settings, targets)
    on_gpu = mllm.device.type == "cuda"
    numbers = range(start, len(batches))
    loader = iter(load_batches(batches, numbers, workers=settings.workers, pin_memory=on_gpu))
    bar = tqdm(
        total=len(images) * settings.epochs,
        initial=sum(map(len, order[:start])),
        unit="image",
        disable=not progress,
        dynamic_ncols=True,
    )
    with bar, stop_signals() as stop, run.log.open("a") as log:
        for step in steps[learner.step :]:
            began = time.perf_counter()
            for _ in step:
                batch = next(loader)
                try:
                    new = bad.add(batch.bad)
                finally:
                    if batch.bad:
                        run.write_bad_images(bad.reasons)
                for name in new:
                    tqdm.write(f"left out {name}: {bad.reasons[name]}")
                learner.learn(batch)
            learning_rate = learner.learning_rate
            losses = learner.finish_step()
            seconds = time.perf_counter() - began
            size = sum(len(micro) for micro in step)
            line = {
                "step": learner.step,
                "of": len(steps),
                "learning_rate": learning_rate,
                "images_per_second": round(size / seconds, 3),
                "loss": losses,
            }
            log.write(json.dumps(line) + "\n")
            log.flush()
            track(
                {f"{name}/{layer}": loss for name, by_layer in losses.items() for layer, loss in by_layer.items()},
                learner.step,
            )
            bar.set_postfix(
                {name: f"{sum(by_layer.values()) / len(by_layer):.4f}" for name, by_layer in losses.items()}
            )
            bar.update(size)
            done = learner.step == len(steps)
            if done or stop.asked or learner.step % settings.save_every == 0:
                learner.bad = bad.reasons
                learner.save(run.state)
                run.write_bad_images(bad.reasons)
            if stop.asked and not done:
                raise Stopped(f"stopped after step {learner.step} of {len(steps)}; go on with --resume")
    track(None, learner.step)
    run.write_bad_images(bad.reasons)
    facts = {
        "prompt": settings.prompt,
        "tokens": settings.tokens,
        "protocol": settings.protocol,
        "steps": learner.step,
        "images": learner.count,
    }
    for name, bank in banks.items():
        bank.mean.copy_(learner.totals[name] / learner.count)
        bank.save(run.probes(name), facts)
    run.state.unlink(missing_ok=True)
    return banks


class Learner:
    """The probes in training: what one step changes, and what a resumed run needs."""

    def __init__(
        self,
        mllm: MLLM,
        targets: Sequence[Target],
        banks: dict[str, ProbeBank],
        layers: Sequence[int],
        settings: TrainSettings,
        num_steps: int,
    ) -> None:
        """Make the optimizer and its schedule."""
        self.mllm = mllm
        self.targets = targets
        self.banks = banks
        self.layers = layers
        self.settings = settings
        self.parameters = [parameter for bank in banks.values() for parameter in bank.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            fused=mllm.device.type in ("cpu", "cuda"),
        )
        self.scheduler = get_cosine_schedule_with_warmup(
            self.optimizer, num_warmup_steps=round(settings.warmup * num_steps), num_training_steps=num_steps
        )
        self.step = 0
        self.count = 0
        """Images whose features are in `totals`."""
        self.totals = {
            name: torch.zeros_like(bank.mean, dtype=torch.float64 if mllm.device.type != "mps" else torch.float32)
            for name, bank in banks.items()
        }
        """Sum of each target's features over the images seen."""
        self.bad: dict[str, str] = {}
        self._start_step()

    @property
    def learning_rate(self) -> float:
        """Of the step that comes next."""
        return self.scheduler.get_last_lr()[0]

    def learn(self, batch: Batch) -> None:
        """Add the gradients of a micro-batch: one pass of the MLLM and of each expert, one layer's graph at a time."""
        if batch.inputs is None:
            return
        truth = {target.name: target.encode(batch.pixels[target.name]) for target in self.targets}
        for name, features in truth.items():
            self.totals[name] += features.sum(dim=0)
        size = len(batch.names)
        self.count += size
        self.step_size += size
        inputs = batch.inputs.to(self.mllm.device)

        def learn_layer(layer: int, states: Tensor, mask: Tensor) -> None:
            grid = inputs.places(layer, states.shape[1])
            if self.settings.protocol == "paper":
                mask = torch.ones_like(mask)
            for name, bank in self.banks.items():
                with torch.enable_grad():
                    with autocast(self.mllm.device):
                        prediction = bank(layer, states, mask, grid)
                    loss = F.smooth_l1_loss(prediction, truth[name])
                    (loss * size).backward()
                self.losses[name][layer] = self.losses[name][layer] + loss.detach() * size

        try:
            self.mllm.visit(inputs, learn_layer, self.layers, tokens=self.settings.tokens)
        except torch.OutOfMemoryError as error:
            raise InnerVisionError(
                f"{self.mllm.device} is out of memory with {size} images at once: lower micro_batch_size, or probe "
                "fewer layers"
            ) from error

    def finish_step(self) -> dict[str, dict[int, float]]:
        """Update the probes with the mean gradient over the step's images.

        Returns:
            Each target's loss by layer, the mean over the step's images.

        Raises:
            InnerVisionError: a loss is not finite.
        """
        size = max(self.step_size, 1)
        losses = {
            name: dict(
                zip(
                    by_layer,
                    torch.stack([torch.as_tensor(x) for x in by_layer.values()]).div(size).tolist(),
                    strict=True,
                )
            )
            for name, by_layer in self.losses.items()
        }
        for name, by_layer in losses.items():
            if wrong := [layer for layer, loss in by_layer.items() if not loss < float("inf")]:
                raise InnerVisionError(
                    f"the loss of {name} at layer {wrong[0]} is {by_layer[wrong[0]]} in step {self.step + 1}: "
                    "try a smaller lr, clip=1, or dtype=float32"
                )
        if self.step_size:
            torch._foreach_div_([p.grad for p in self.parameters if p.grad is not None], size)
            if self.settings.clip:
                for bank in self.banks.values():
                    for probe in bank.probes.values():
                        nn.utils.clip_grad_norm_(probe.parameters(), self.settings.clip)
            self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        self._start_step()
        return losses

    def save(self, path: Path) -> None:
        """Write all that `restore` needs, atomically."""
        state = {
            "step": self.step,
            "count": self.count,
            "totals": self.totals,
            "bad": self.bad,
            "banks": {name: bank.state_dict() for name, bank in self.banks.items()},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        with atomic_write(path) as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # what it makes of a full disk
                raise OSError(f"{error} (is the disk full?)") from error

    def restore(self, path: Path) -> None:
        """Go back to a saved state.

        Raises:
            InnerVisionError: the file is broken or belongs to other probes.
        """
        try:
            state = torch.load(path, map_location=self.mllm.device, weights_only=True)
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            for name, bank in self.banks.items():
                bank.load_state_dict(state["banks"][name])
                self.totals[name].copy_(state["totals"][name])
            self.step, self.count, self.bad = state["step"], state["count"], state["bad"]
        except Exception as error:  # a broken file can make its reader raise anything
            raise InnerVisionError(
                f"cannot resume from {path}, which is broken or of another run: {first_line(error)}\n"
                "Without it the run begins anew: delete it and call again."
            ) from error

    def _start_step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.step_size = 0
        self.losses: dict[str, dict[int, Any]] = {name: dict.fromkeys(self.layers, 0.0) for name in self.banks}


def autocast(device: torch.device) -> torch.autocast:
    """Matrix work in bfloat16 on an accelerator; float32 on a CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type != "cpu")


@dataclass
class StopRequest:
    """Whether the user asked to stop."""

    asked: bool = False


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into `asked = True`; a second one acts as usual."""
    stop = StopRequest()
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        tqdm.write("stopping after this step (again to stop at once)")
        signal.signal(number, before[number])

    try:
        for each in (signal.SIGINT, signal.SIGTERM):
            before[each] = signal.signal(each, ask)
    except ValueError:  # not in the main thread, where signals do not arrive
        pass
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _steps(num_images: int, epoch: int, settings: TrainSettings) -> list[list[list[int]]]:
    """Give the images of an epoch: for each step its micro-batches."""
    shuffled = torch.randperm(
        num_images, generator=torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    ).tolist()
    steps = [shuffled[i : i + settings.batch_size] for i in range(0, num_images, settings.batch_size)]
    size = settings.micro_batch_size
    return [[step[i : i + size] for i in range(0, len(step), size)] for step in steps]


def _record(
    mllm: MLLM, targets: Sequence[Target], layers: Sequence[int], images: ImageSet, banks: dict[str, ProbeBank]
) -> dict[str, Any]:
    return {
        "mllm": {"name": mllm.name, "revision": mllm.revision, "num_layers": mllm.num_layers},
        "experts": {target.name: {"name": target.expert, "revision": target.revision} for target in targets},
        "layers": list(layers),
        "images": {"found": len(images), "missing": len(images.missing), "files": images.fingerprint()},
        "parameters": {name: sum(p.numel() for p in bank.parameters()) for name, bank in banks.items()},
        "device": str(mllm.device),
        "dtype": str(mllm.dtype).removeprefix("torch."),
    }


def _cut_log(path: Path, step: int) -> None:
    """Drop the log's lines after a step: they are about to be written again."""
    if not path.exists():
        return
    kept = [
        line
        for line in path.read_text().splitlines(keepends=True)
        if line.endswith("\n") and json.loads(line)["step"] <= step
    ]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(kept))


def _trackers(settings: TrainSettings, path: Path) -> Any:
    """Find Accelerate's trackers; they are not started yet."""
    if not settings.trackers:
        return None
    from accelerate import Accelerator

    try:
        return Accelerator(cpu=True, log_with=settings.trackers.split(","), project_dir=path / "train")
    except (ValueError, ImportError) as error:
        raise InnerVisionError(f"trackers={settings.trackers!r} cannot be used: {error}") from error


def _start(accelerator: Any, settings: TrainSettings) -> Callable[[dict[str, float] | None, int], None]:
    """Give a function that sends values to the trackers, and closes them when called with None."""
    if accelerator is None:
        return lambda values, step: None
    accelerator.init_trackers(
        "innervision",
        config={k: v for k, v in asdict(settings).items() if not isinstance(v, dict | type(None))},
    )

    def track(values: dict[str, float] | None, step: int) -> None:
        if values is None:
            accelerator.end_training()
        else:
            accelerator.log(values, step=step)

    return track
