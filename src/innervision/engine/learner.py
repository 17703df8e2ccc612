"""Probes in training: what a step changes, and what a resumed run needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from innervision.data.loader import Batch
from innervision.engine.session import Session
from innervision.errors import InnerVisionError, first_line, require
from innervision.files import atomic_write
from innervision.probes import ProbeBank

Losses = dict[str, dict[int, float]]
"""The mean loss over a step's images, by target and layer."""


class Learner:
    """The probes of a run, their optimizer and its schedule."""

    def __init__(self, session: Session, banks: dict[str, ProbeBank], layers: Sequence[int], num_steps: int) -> None:
        """Make the optimizer and its schedule for `num_steps` steps."""
        settings = session.settings
        self.session = session
        self.banks = banks
        self.layers = layers
        self.parameters = [parameter for bank in banks.values() for parameter in bank.parameters()]
        require(bool(self.parameters), f"the probe {settings.probe.kind!r} has no weights to learn")
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            fused=all(parameter.device.type in ("cpu", "cuda") for parameter in self.parameters),
        )
        self.scheduler = get_cosine_schedule_with_warmup(
            self.optimizer, num_warmup_steps=round(settings.warmup * num_steps), num_training_steps=num_steps
        )
        self.step = 0
        """Steps that are done."""
        self.count = 0
        """Images whose features are in `totals`."""
        self.totals = {name: torch.zeros(bank.mean.shape, dtype=torch.float64) for name, bank in banks.items()}
        """Sum of each target's features over the images seen, (N, C) on the CPU."""
        self.bad: dict[str, str] = {}
        """Images that were left out, and why."""
        self.run: str | None = None
        """Tells the run from others; what another has saved is not restored."""
        self._start_step()

    @property
    def learning_rate(self) -> float:
        """Of the step that comes next."""
        return self.scheduler.get_last_lr()[0]

    def learn(self, batch: Batch) -> None:
        """Add the gradients of a micro-batch: one pass of the MLLM and of each expert, one layer's graph at a time."""
        if batch.inputs is None:
            return
        session = self.session
        truth = {target.name: target.encode(batch.pixels[target.name]) for target in session.targets}
        for name, features in truth.items():
            total = features.sum(dim=0).cpu()
            if not total.isfinite().all():
                raise InnerVisionError(
                    f"the expert of {name} gives features that are not finite for one of {', '.join(batch.names)}: "
                    "leave the image out, or try expert_dtype=float32"
                )
            self.totals[name] += total
        size = len(batch.names)
        self.count += size
        self.step_size += size

        def learn(name: str, layer: int, prediction: Tensor) -> None:
            loss = F.smooth_l1_loss(prediction, truth[name].to(prediction.device))
            (loss * size).backward()
            self.losses[name][layer] = self.losses[name][layer] + loss.detach() * size

        session.predict(batch.inputs, self.banks, learn, gradients=True)

    def finish_step(self) -> Losses | None:
        """Update the probes with the mean gradient over the step's images.

        Returns:
            Each target's loss by layer; None where the step has no good image, which changes nothing.

        Raises:
            InnerVisionError: a loss is not finite.
        """
        size, losses = self.step_size, None
        if size:
            losses = {
                name: {layer: float(loss) / size for layer, loss in by_layer.items()}
                for name, by_layer in self.losses.items()
            }
            self._check(losses)
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(size)
            if self.session.settings.clip:
                for bank in self.banks.values():
                    for probe in bank.probes.values():
                        nn.utils.clip_grad_norm_(probe.parameters(), self.session.settings.clip)
            self.optimizer.step()
            self.scheduler.step()
        self.step += 1
        self._start_step()
        return losses

    def save(self, path: Path) -> None:
        """Write all that `restore` needs, atomically."""
        state = {
            "run": self.run,
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
            except RuntimeError as error:  # PyTorch raises this when the disk is full
                raise OSError(f"{error} (is the disk full?)") from error

    def restore(self, path: Path) -> None:
        """Go back to a saved state.

        Raises:
            InnerVisionError: the file is broken or belongs to other probes.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            require(state["run"] == self.run, "another run has saved it")
            for name, bank in self.banks.items():
                bank.load_state_dict(state["banks"][name])
                self.totals[name].copy_(state["totals"][name])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.step, self.count, self.bad = state["step"], state["count"], state["bad"]
        except Exception as error:  # a broken file can make its reader raise anything
            raise InnerVisionError(
                f"cannot resume from {path}, which is broken or of another run: {first_line(error)}\n"
                "Without it the run begins anew: delete it and call again."
            ) from error

    def _check(self, losses: Losses) -> None:
        for name, by_layer in losses.items():
            if wrong := [layer for layer, loss in by_layer.items() if not loss < float("inf")]:
                raise InnerVisionError(
                    f"the loss of {name} at layer {wrong[0]} is {by_layer[wrong[0]]} in step {self.step + 1}: "
                    "try a smaller lr, clip=1, or probe_dtype=float32 and dtype=float32"
                )

    def _start_step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.step_size = 0
        self.losses: dict[str, dict[int, Any]] = {name: dict.fromkeys(self.layers, 0.0) for name in self.banks}
