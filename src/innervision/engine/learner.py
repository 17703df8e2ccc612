"""Probes that are being fitted: what a batch adds, what a step changes, and what a resumed run needs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from innervision.data.loader import Batch
from innervision.engine.mesh import Mesh
from innervision.engine.progress import Phases, Took
from innervision.engine.session import Session
from innervision.errors import InnerVisionError, first_line, require
from innervision.files import atomic_write, require_regular
from innervision.probes import ProbeBank

Part = TypeVar("Part")


class Learner(ABC):
    """The probes of a run, and how they are fitted."""

    def __init__(
        self, session: Session, banks: dict[str, ProbeBank], layers: Sequence[int], mesh: Mesh | None = None
    ) -> None:
        """Start without images.

        Args:
            session: the models.
            banks: what this process fits, by target.
            layers: to be probed, by all processes together.
            mesh: where this process stands: those that fit the same probes do so from their own images, and sum what
                they find.
        """
        self.session = session
        self.banks = banks
        self.layers = layers
        self.mesh = mesh or Mesh()
        self.sharded = False
        """Whether this process has but a share of each probe's tensors."""
        self.step = 0
        """Steps that are done."""
        self.count = 0
        """Images that all processes have seen in these steps."""
        self.step_size = 0
        """Images that this process has seen since."""
        self.bad: dict[str, str] = {}
        """Images that were left out, and why."""
        self.took = Took()
        """What all these steps took."""
        self.phases = Phases({}, shown=False)
        """What this call has to do, see `work`."""
        self.run: str | None = None
        """Tells the run from others; what another has saved is not restored."""

    @abstractmethod
    def work(self, images: int) -> dict[str, int]:
        """Name the phases of fitting, that over the images first, with what is left of each when so many images are."""

    @abstractmethod
    def learn(self, batch: Batch) -> None:
        """Take a batch of this process's images: one pass of the MLLM and of each expert."""

    @abstractmethod
    def keep_pace(self, turns: int) -> None:
        """Do what others need of this process while they take so many more batches in this step."""

    @abstractmethod
    def finish_step(self) -> dict[str, Any]:
        """End a step of all processes, and say what the log tells of it."""

    @abstractmethod
    def finish(self) -> dict[str, dict[str, Any]]:
        """Bring the banks to their last state, those of the first row at least, and give facts for each one's file.

        All images were seen, and one at least could be read.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Give the first process what a resumed run needs beside what every learner has."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state` gave."""

    def whole_banks(self) -> dict[str, ProbeBank]:
        """Give the first process the banks of its row, for all layers, each probe on the device of its layer."""
        if self.mesh.layers.count == 1 and not self.sharded:
            return self.banks
        whole = {}
        for name, bank in self.banks.items():
            parts = self.bring_parts((bank.info.widths, on_cpu(bank.state_dict())))
            if parts:
                widths = {layer: width for part, _ in parts for layer, width in part.items()}
                info = replace(bank.info, widths={layer: widths[layer] for layer in self.layers})
                whole[name] = ProbeBank(info, bank.settings)
                whole[name].load_state_dict({key: value for _, part in parts for key, value in part.items()})
                self.session.place(whole[name])
        return whole

    def bring_parts(self, part: Part) -> list[Part]:
        """Give the first process what each one of its row says; others get nothing."""
        return self.mesh.layers.bring_all(part) if self.mesh.images.index == 0 else []

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Give each expert's features (B, N, C) of a batch, and count its images.

        Raises:
            InnerVisionError: they are not finite.
        """
        truth = {target.name: self.mesh.encode(target, batch.pixels[target.name]) for target in self.session.targets}
        for name, features in truth.items():
            if not features.isfinite().all():
                raise InnerVisionError(
                    f"the expert of {name} gives features that are not finite for one of {', '.join(batch.names)}: "
                    "leave the image out, or try expert_dtype=float32"
                )
        self.step_size += len(batch.names)
        return truth

    def save(self, path: Path) -> None:
        """Let the first process write all that `restore` needs, atomically."""
        state = {
            "run": self.run,
            "step": self.step,
            "count": self.count,
            "bad": self.bad,
            "took": list(self.took),
            **self.state(),
        }
        if self.mesh.all.index > 0:
            return
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
        require_regular(path)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            require(state["run"] == self.run, "another run has saved it")
            self.load_state(state)
            self.step, self.count, self.bad = state["step"], state["count"], state["bad"]
            self.took = Took(*state.get("took", ()))
        except Exception as error:  # a broken file can make its reader raise anything
            raise InnerVisionError(
                f"cannot resume from {path}, which is broken or of another run: {first_line(error)}\n"
                "Without it the run begins anew: delete it and call again."
            ) from error


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors to the CPU, by which processes send them to each other.

    Those that are shared out over processes become whole; all of these make this call together.
    """
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
        for name, tensor in tensors.items()
    }
