"""Trained probes: gradients of a smooth-L1 loss, and AdamW."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import get_cosine_schedule_with_warmup

from innervision.data.loader import Batch
from innervision.engine.learner import Learner, on_cpu
from innervision.engine.mesh import Mesh
from innervision.engine.session import Session
from innervision.errors import InnerVisionError, require
from innervision.probes import ProbeBank

Losses = dict[str, dict[int, float]]
"""The mean loss over a step's images, by target and layer."""


class Descent(Learner):
    """The probes of a run, their optimizer and its schedule."""

    def __init__(
        self,
        session: Session,
        banks: dict[str, ProbeBank],
        layers: Sequence[int],
        num_steps: int,
        mesh: Mesh | None = None,
    ) -> None:
        """Make the optimizer and its schedule for `num_steps` steps. See `Learner`."""
        super().__init__(session, banks, layers, mesh)
        settings = session.settings
        if settings.shard_probes and self.mesh.images.count > 1:
            self._shard()
        named = {f"{name}/{key}": each for name, bank in banks.items() for key, each in bank.named_parameters()}
        self.names, self.parameters = [*named], [*named.values()]
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
        self.totals = {name: torch.zeros(bank.mean.shape, dtype=torch.float64) for name, bank in banks.items()}
        """Sum of each target's features over this process's images, (N, C) on the CPU."""
        self._start_step()

    def _shard(self) -> None:
        """Share out the tensors of each probe over the processes that share the images, by PyTorch's FSDP2."""
        self.sharded = True
        images = self.mesh.images
        group = images.group or distributed.group.WORLD
        assert group

        def where(parameter: nn.Parameter) -> Shard | None:
            """Choose the dimension that is shared out, as the queries' first one is 1; by default the first."""
            return next((Shard(dim) for dim, size in enumerate(parameter.shape) if size % images.count == 0), None)

        for bank in self.banks.values():
            for layer in bank.layers:
                devices = DeviceMesh.from_group(group, bank.device_of(layer).type)
                fully_shard(bank.probes[str(layer)], mesh=devices, shard_placement_fn=where)

    def work(self, images: int) -> dict[str, int]:
        """See `Learner.work`."""
        return {"training": images}

    def learn(self, batch: Batch) -> None:
        """Add the gradients of a micro-batch, one layer's graph at a time. See `Learner.learn`."""
        if batch.inputs is None:
            self.keep_pace(1)
            return
        truth = self.encode(batch)
        for name, features in truth.items():
            self.totals[name] += features.sum(dim=0).cpu()
        size = len(batch.names)

        def learn(name: str, layer: int, prediction: Tensor) -> None:
            loss = F.smooth_l1_loss(prediction, truth[name].to(prediction.device))
            (loss * size).backward()
            self.losses[name][layer] = self.losses[name][layer] + loss.detach() * size

        self.session.predict(batch.inputs, self.banks, learn, self.layers, gradients=True)

    def keep_pace(self, turns: int) -> None:
        """Let sharded probes be gathered for the others' batches, and add nothing. See `Learner.keep_pace`."""
        for _, layer, bank in product(range(turns if self.sharded else 0), self.layers, self.banks.values()):
            if layer in bank.layers:
                device, width = bank.device_of(layer), bank.info.widths[layer]
                states, places = torch.zeros(1, 1, width, device=device), torch.zeros(1, 1, 4, device=device)
                mask = torch.ones(1, 1, dtype=torch.bool, device=device)
                with torch.enable_grad(), self.session.autocast(device):
                    prediction = bank(layer, states, mask, places)
                (0 * prediction).sum().backward()

    def finish_step(self) -> dict[str, Any]:
        """Update the probes with the mean gradient over the step's images.

        Returns:
            The learning rate, and each target's loss by layer, which is None where the step has no good image and
            changes nothing.

        Raises:
            InnerVisionError: a loss is not finite.
        """
        size, losses = self._sum_over_processes()
        learning_rate = self.scheduler.get_last_lr()[0]
        if size:
            self._check(losses)
            divisor = size / self.mesh.images.count if self.sharded else size  # FSDP2 gives the processes' mean
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(divisor)
            if self.session.settings.clip:
                for bank in self.banks.values():
                    for probe in bank.probes.values():
                        nn.utils.clip_grad_norm_(probe.parameters(), self.session.settings.clip)
            self.optimizer.step()
            self.scheduler.step()
        self.step += 1
        self.count += size
        self._start_step()
        return {"learning_rate": learning_rate, "loss": losses if size else None}

    def finish(self) -> dict[str, dict[str, Any]]:
        """Set the mean features, and say how many steps were taken; the probes are as the last one left them."""
        for name, total in self._totals().items():
            self.banks[name].mean.copy_(total / self.count)
        return {name: {"steps": self.step} for name in self.banks}

    def state(self) -> dict[str, Any]:
        """Give the sums of features, and the state of probes, optimizer and schedule."""
        moments = self.optimizer.state_dict()["state"]
        part = {
            "banks": {name: on_cpu(bank.state_dict()) for name, bank in self.banks.items()},
            "moments": {self.names[number]: on_cpu(each) for number, each in moments.items()},
        }
        totals, parts = self._totals(), self.bring_parts(part)
        return {
            "totals": totals,
            "banks": {name: {k: v for each in parts for k, v in each["banks"][name].items()} for name in self.banks},
            "moments": {name: moment for each in parts for name, moment in each["moments"].items()},
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See `Learner.load_state`."""
        for name, bank in self.banks.items():
            saved = state["banks"][name]
            bank.load_state_dict({key: share_of(saved[key], each) for key, each in bank.state_dict().items()})
            if self.mesh.images.index == 0:  # which goes on with what all have summed
                self.totals[name].copy_(state["totals"][name])
        saved = state["moments"]
        mine = {
            number: {key: share_of(each, parameter) if each.dim() else each for key, each in saved[name].items()}
            for number, (name, parameter) in enumerate(zip(self.names, self.parameters, strict=True))
            if name in saved
        }
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": mine})
        self.scheduler.load_state_dict(state["scheduler"])
        for group, learning_rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = learning_rate

    def _totals(self) -> dict[str, Tensor]:
        """Give the first process the sums of features over the images of all."""
        totals = {name: total.clone() for name, total in self.totals.items()}
        self.mesh.images.sum([*totals.values()], to=0)
        return totals

    def _sum_over_processes(self) -> tuple[int, Losses]:
        """Sum the gradients of the step; give the number of its images, and each target's loss by layer."""
        parameters = [] if self.sharded else self.parameters  # FSDP2 sums its gradients itself
        used = [parameter.grad is not None for parameter in parameters]
        losses = [float(loss) for by_layer in self.losses.values() for loss in by_layer.values()]
        told = torch.tensor([self.step_size, *losses, *used], dtype=torch.float64)
        self.mesh.images.sum([told])
        size = int(told[0])
        in_order = iter((told[1 : 1 + len(losses)] / max(size, 1)).tolist())
        used_somewhere = told[1 + len(losses) :].tolist()
        gradients = []
        for parameter, somewhere in zip(parameters, used_somewhere, strict=True):
            if somewhere:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        self.mesh.images.sum(gradients)
        mine = {name: {layer: next(in_order) for layer in by_layer} for name, by_layer in self.losses.items()}
        parts = self.mesh.layers.exchange(mine)
        return size, {
            name: {layer: part[name][layer] for layer in self.layers for part in parts if layer in part[name]}
            for name in mine
        }

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
        self.losses: dict[str, dict[int, Any]] = {
            name: dict.fromkeys(bank.layers, 0.0) for name, bank in self.banks.items()
        }


def share_of(whole: Tensor, like: Tensor) -> Tensor:
    """Give this process's share of a tensor, where another one is shared out; the whole of it else."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
