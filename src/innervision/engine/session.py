"""The frozen models of a run, and the one walk from images to predictions.

Training, evaluation and pictures all come through here: what the MLLM is shown, which tokens a probe may read, where
they stand and in which precision probes work are decided in this file and in the protocol it asks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import PIL.Image
import torch
from PIL.Image import Image
from torch import Tensor

from innervision.config import TrainSettings
from innervision.data.loader import Batches, Truth
from innervision.data.sources import ImageSet
from innervision.engine.environment import device_name, package_versions
from innervision.errors import InnerVisionError, out_of_memory
from innervision.mllm import MLLM, Inputs
from innervision.mllm.check import require_sound
from innervision.mllm.places import PlaceFinder
from innervision.original.protocol import PROTOCOLS, Prepare
from innervision.probes import ProbeBank
from innervision.targets import load_targets
from innervision.targets.target import Target
from innervision.terminal import tell

BLANK_SIZE, BLANK_COLOUR = (448, 448), (128, 128, 128)
"""Of the image that shows nothing."""

Reader = Callable[[int, Tensor, Tensor, Tensor], Tensor | None]
"""Called with a layer's number, its states (B, T, D), the tokens to read (B, T) bool and their places (B, T, 4): row,
column, height and width as shares of the image, see `PlaceFinder.find`. States (B, T, D) that it returns take the place
of those shown, see `MLLM.visit`."""

Receiver = Callable[[str, int, Tensor], None]
"""Called with a target's name, a layer's number and the prediction (B, N, C) float32, on the device of its probe."""


@dataclass(frozen=True)
class Session:
    """The models of a run at work for one script: training, or an evaluation.

    Nothing is said of devices: every layer, probe and expert may have its own, and what passes between them is moved.
    """

    settings: TrainSettings
    """Of the run."""
    mllm: MLLM
    targets: Sequence[Target]
    script: str
    """What the models work for: `train`, or the name of an evaluation. The protocol may make a difference."""

    @classmethod
    def load(
        cls,
        settings: TrainSettings,
        script: str,
        *,
        mllm: MLLM | None = None,
        targets: Sequence[Target] | None = None,
        only: Sequence[str] | None = None,
        head: bool = False,
        device: str | None = None,
        split: int = 1,
        trust_remote_code: bool = False,
    ) -> "Session":
        """Load the models of a run, or take those that are given.

        Args:
            settings: of the run.
            script: what they work for.
            mllm: instead of the one that the settings name.
            targets: instead of those that the settings name.
            only: names of the targets that are needed; by default all.
            head: load the experts' heads as well.
            device: by default the accelerator, where there is one.
            split: number of processes that hold the MLLM together; with a given one, as many must.
            trust_remote_code: run model code that comes with the MLLM's checkpoint.

        Raises:
            InnerVisionError: one of them cannot be had, or the MLLM fails the test that training begins with.
        """
        if mllm is None:
            mllm = MLLM.load(
                settings.mllm,
                revision=settings.revision,
                dtype=_dtype(settings.dtype),
                device=device,
                split=split,
                quantization=settings.quantization,
                random_weights=settings.random_weights,
                seed=settings.seed,
                trust_remote_code=trust_remote_code,
                template=settings.template,
            )
        if script == "train" and isinstance(mllm, MLLM):  # a stand-in is taken as it is
            for warning in require_sound(mllm, settings.prompt):
                tell(f"warning: {warning}")
        if targets is None:
            precision = _dtype(settings.expert_dtype)
            targets = load_targets(settings.targets, only=only, device=mllm.device, dtype=precision, head=head)
            for target in targets:
                PROTOCOLS[settings.protocol].adopt(target)
        chosen = [target for target in targets if only is None or target.name in only]
        if other := [target.name for target in chosen if target.dtype != _dtype(settings.expert_dtype)]:
            raise InnerVisionError(f"the target {other[0]} does not work in {settings.expert_dtype}, as the run's do")
        if other := [target.name for target in chosen if target.protocol != settings.protocol]:
            raise InnerVisionError(
                f"the target {other[0]} does not see images by the run's protocol, {settings.protocol}: "
                "let innervision.original.protocol.PROTOCOLS[protocol].adopt(target) see to it"
            )
        return cls(settings, mllm, chosen, script)

    @property
    def prepare_inputs(self) -> Prepare:
        """Make the MLLM's inputs of images, as the protocol has it."""
        return PROTOCOLS[self.settings.protocol].inputs(self.mllm.builder, self.settings.prompt, self.script)

    @cached_property
    def place_finder(self) -> PlaceFinder:
        """Tells where tokens stand."""
        return PlaceFinder(self.mllm, self.prepare_inputs)

    def batches(
        self, images: ImageSet, order: Sequence[Sequence[int]], *, truth: Truth | None = None, paired: bool = False
    ) -> Batches:
        """Give the batches that the models see.

        Args:
            images: all of them.
            order: for every batch the indices of its images.
            truth: gives what is known of an image.
            paired: whether each image has a partner, see `innervision.data.partners`.
        """
        protocol = PROTOCOLS[self.settings.protocol]
        preparers = {target.name: protocol.pixels(target.preparer, self.script) for target in self.targets}
        return Batches(images, order, self.prepare_inputs, preparers, truth, paired)

    def prepare(self, image: Image) -> tuple[Inputs, dict[str, Any]]:
        """Give the MLLM's inputs of one image, and each expert's pixels."""
        batches = self.batches(ImageSet([], [], []), [])
        return batches.prepare([image]), {name: prepare([image]) for name, prepare in batches.preparers.items()}

    def read(self, inputs: Inputs, reader: Reader, layers: Sequence[int], *, places: bool = False) -> None:
        """Let a batch pass through the MLLM, and show each layer's states, tokens and places as soon as they are there.

        The reader runs without gradients and may turn them on. States that it returns are what the model goes on with.

        Args:
            inputs: of the batch.
            reader: is shown the layers, and may change them.
            layers: which.
            places: whether the reader needs places; all are NaN else. They are found by experiment, once for each
                size of images or for many, before the batch passes.

        Raises:
            InnerVisionError: the model cannot be read so, or memory does not suffice.
        """
        protocol = PROTOCOLS[self.settings.protocol]
        found = self.place_finder.find(inputs, layers) if places else {}

        def show(layer: int, states: Tensor, mask: Tensor) -> Tensor | None:
            unknown = states.new_full((*states.shape[:2], 4), float("nan"), dtype=torch.float32)
            where = found[min(layer, 0)].to(states.device) if places else unknown
            return reader(layer, states, protocol.mask(mask, self.script), where)

        self.mllm.visit(inputs, show, layers, tokens=self.settings.tokens)

    def predict(
        self,
        inputs: Inputs,
        banks: Mapping[str, ProbeBank],
        receive: Receiver,
        layers: Sequence[int] | None = None,
        *,
        gradients: bool = False,
    ) -> None:
        """Let a batch pass through the MLLM and the probes, and hand over each prediction as soon as it is there.

        Args:
            inputs: of the batch.
            banks: of the targets, by name; all for the same layers.
            receive: takes the predictions.
            layers: that the MLLM runs through; by default those of the banks. Processes that hold it together pass
                through the same ones, whichever of them have probes here.
            gradients: whether predictions have a graph, of which one layer's is alive at a time.
        """
        own = next(iter(banks.values())).layers

        def read(layer: int, states: Tensor, mask: Tensor, places: Tensor) -> None:
            for name, bank in banks.items() if layer in own else ():
                device = bank.device_of(layer)
                with torch.set_grad_enabled(gradients):
                    with self.autocast(device):
                        prediction = bank(layer, *(tensor.to(device) for tensor in (states, mask, places)))
                    receive(name, layer, prediction)

        needed = any(bank.needs_places for bank in banks.values())
        self.read(inputs, read, layers or own, places=needed)

    def predict_blank(
        self, banks: Mapping[str, ProbeBank], layers: Sequence[int] | None = None
    ) -> dict[str, dict[int, Tensor]]:
        """Give what probes predict where the MLLM is shown a plain grey square: what the prompt and their constants do.

        For the arguments see `predict`.

        Returns:
            By target and layer: (N, C) float32, on the device of the probe.
        """
        found: dict[str, dict[int, Tensor]] = {name: {} for name in banks}

        def receive(name: str, layer: int, prediction: Tensor) -> None:
            found[name][layer] = prediction[0]

        inputs, _ = self.prepare(PIL.Image.new("RGB", BLANK_SIZE, BLANK_COLOUR))
        self.predict(inputs, banks, receive, layers)
        return found

    def place(self, bank: ProbeBank) -> ProbeBank:
        """Bring each probe to the device of its layer."""
        return bank.place({layer: self.mllm.device_of(layer) for layer in bank.layers})

    def count_devices(self, layers: Sequence[int]) -> int:
        """Count the devices that this process's MLLM and the probes of these layers are on."""
        return len({self.mllm.device, *map(self.mllm.device_of, layers)})

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Give the precision of the probes' matrix work on a device, as the settings or else the protocol say."""
        if not torch.amp.is_autocast_available(device.type):
            return nullcontext()
        dtype = self.probe_dtype(device)
        return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)

    def probe_dtype(self, device: torch.device) -> torch.dtype:
        """Give the type of the probes' matrix work on a device."""
        chosen = PROTOCOLS[self.settings.protocol].probe_dtype(device, self.script)
        return _dtype(self.settings.probe_dtype) or chosen

    def setup(self) -> dict[str, Any]:
        """Say on what the numbers were made: devices, precision, image processors, versions of packages."""
        return {
            "device": device_name(self.mllm.device),
            "dtype": {
                "mllm": _name(self.mllm.dtype),
                "experts": self.settings.expert_dtype,
                "probes": _name(self.probe_dtype(self.mllm.device)),
            },
            "processors": {
                "mllm": self.mllm.processor_name,
                **{target.name: target.processor_name for target in self.targets},
            },
            "versions": package_versions(),
        }


@contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Turn what PyTorch raises when memory runs out into an error that says what to do.

    Raises:
        InnerVisionError: memory ran out.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InnerVisionError(f"the accelerator is out of memory: {advice}") from error
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise InnerVisionError(f"the memory of this machine does not suffice: {advice}") from error


def _dtype(name: str | None) -> torch.dtype | None:
    return None if name is None else getattr(torch, name)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
