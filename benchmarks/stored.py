"""Many trainings of probes over one pass of the frozen models: the states of a small model are kept, not read again."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.planted import Known
from innervision import MLLM, ProbeBank, ProbeSettings, Target, TrainSettings
from innervision.config import parse_layers
from innervision.data import find_images
from innervision.data.loader import Batch, load_batches
from innervision.engine.descent import Descent
from innervision.engine.run import RunFolder
from innervision.engine.session import Reader, Session
from innervision.probes.probe import Probe
from innervision.probes.resampler import Resampler
from innervision.probes.ridge import Ridge
from innervision.registry import offered

ADDED = "ridge+resampler"
"""What the registry calls `AddedToRidge` under `offer_added`."""


class AddedToRidge(Probe):
    """A resampler whose prediction is added to that of a ridge: it learns what the ridge, which stays, leaves."""

    reads_places = True

    def __init__(
        self, width_in: int, num_queries: int, width_out: int, settings: ProbeSettings, *, scale: float = 1.0
    ) -> None:
        """Make a probe; `scale` is the size of what the resampler adds before it is trained. See `Probe`."""
        super().__init__()
        self.ridge = Ridge(width_in, num_queries, width_out, settings)
        self.resampler = Resampler(
            width_in, num_queries, width_out, replace(settings, kind="resampler", positions=True)
        )
        nn.init.constant_(self.resampler.norm_out.weight, scale)

    def forward(self, states: Tensor, mask: Tensor, places: Tensor | None = None) -> Tensor:
        """Predict the target's features. See `Probe.forward`."""
        return self.ridge(states, mask, places) + self.resampler(states, mask, places)


@contextmanager
def offer_added() -> Iterator[None]:
    """Let the registry know `AddedToRidge`, as if a package had brought it."""
    entry = EntryPoint(ADDED, f"{AddedToRidge.__module__}:{AddedToRidge.__name__}", "innervision.probes")

    def with_added(group: str) -> dict[str, EntryPoint]:
        return offered(group) | ({ADDED: entry} if group == "probes" else {})

    with mock.patch("innervision.registry.offered", with_added):
        yield


@dataclass(frozen=True)
class Stored(Session):
    """A session whose images have passed through its models: the inputs of a batch are the numbers of its images."""

    names: Sequence[str]
    """Of the images."""
    layers: Mapping[int, tuple[Tensor, Tensor, Tensor]]
    """By number: states (I, T, D), tokens to read (I, T) and their places (I, T, 4) of all images."""
    features: Mapping[str, Tensor]
    """By target: (I, N, C)."""

    @classmethod
    def of(cls, settings: TrainSettings, mllm: MLLM, targets: Sequence[Target]) -> Self:
        """Let the settings' images pass, all of which must have the same number of tokens."""
        session = Session.load(settings, "train", mllm=mllm, targets=targets)
        images = find_images(settings.images)
        order = [
            list(range(len(images)))[i : i + settings.batch_size] for i in range(0, len(images), settings.batch_size)
        ]
        layers = parse_layers(settings.layers, mllm.num_layers, mllm.has_vision_layer())
        names: list[str] = []
        features: dict[str, list[Tensor]] = {target.name: [] for target in targets}
        shown: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {layer: [] for layer in layers}

        def keep(layer: int, states: Tensor, mask: Tensor, places: Tensor) -> None:
            shown[layer].append((states.clone(), mask, places))

        with load_batches(session.batches(images, order), range(len(order)), workers=0, pin_memory=False) as loader:
            for batch in loader:
                names += batch.names
                session.read(batch.inputs, keep, layers, places=True)
                for target in targets:
                    features[target.name].append(target.encode(batch.pixels[target.name]))
        known: Any = [
            Known(
                target.name,
                target.num_tokens,
                target.width,
                kind=target.kind,
                expert=target.expert,
                revision=target.revision,
            )
            for target in targets
        ]
        joined = {}
        for layer, parts in shown.items():
            states, masks, places = (torch.cat(each) for each in zip(*parts, strict=True))
            joined[layer] = states, masks, places
        return cls(
            settings,
            mllm,
            known,
            "train",
            names=names,
            layers=joined,
            features={name: torch.cat(parts) for name, parts in features.items()},
        )

    def read(self, inputs: Tensor, reader: Reader, layers: Sequence[int], *, places: bool = False) -> None:
        """Show the layers of the images with these numbers. See `Session.read`."""
        with torch.no_grad():
            for layer in layers:
                reader(layer, *(tensor[inputs] for tensor in self.layers[layer]))


def train(stored: Stored, settings: TrainSettings, ridge: RunFolder) -> None:
    """Train the probes that the settings name, as `fit` does, and write their run; a run that is there stays.

    Args:
        stored: the images; each epoch has them in an order of its own, which the seed decides.
        settings: of the run.
        ridge: the run of ridge probes over the same images, to which `AddedToRidge` adds.
    """
    run = RunFolder(settings.out)
    if all(run.probes(target.name).exists() for target in stored.targets):
        return
    session = replace(stored, settings=settings)
    layers = list(session.layers)
    banks = {
        target.name: ProbeBank.for_models(session.mllm, target, layers, settings.probe, seed=settings.seed)
        for target in session.targets
    }
    if settings.probe.kind == ADDED:
        for name, bank in banks.items():
            solved = ProbeBank.load(ridge.probes(name))
            for layer, probe in bank.probes.items():
                probe.ridge.load_state_dict(solved.probes[layer].state_dict())
    random = torch.Generator().manual_seed(settings.seed)
    epochs = (torch.randperm(len(stored.names), generator=random) for _ in range(settings.epochs))
    steps = [*itertools.chain.from_iterable(order.split(settings.batch_size) for order in epochs)]
    descent = Descent(session, banks, layers, len(steps))
    for numbers in steps:
        pixels = {name: features[numbers] for name, features in stored.features.items()}
        descent.learn(Batch([stored.names[i] for i in numbers], numbers, pixels, bad=[]))
        descent.finish_step()
    run.write_settings(settings, ridge.record())
    for name, facts in descent.finish().items():
        described = {"prompt": settings.prompt, "tokens": settings.tokens, "protocol": settings.protocol}
        banks[name].save(run.probes(name), described | facts)
