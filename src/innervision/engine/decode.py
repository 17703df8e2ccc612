"""What the experts' heads make of every layer's prediction for one image: to look at, not to score."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from innervision.engine.fit import autocast
from innervision.engine.run import RunFolder
from innervision.engine.session import load_experts, load_mllm
from innervision.mllm import MLLM
from innervision.probes import ProbeBank
from innervision.targets.target import Target


@dataclass(frozen=True)
class Decoded:
    """One target's outputs (see `Target.decode`) for one image, on the CPU."""

    layers: dict[int, Tensor]
    """Of each layer's prediction, in the order of the layers."""
    expert: Tensor
    """Of the expert's own features in the place of a prediction: the ceiling."""
    mean: Tensor
    """Of the mean feature of the training images: the floor."""

    def all(self) -> list[Tensor]:
        """Give every output."""
        return [*self.layers.values(), self.expert, self.mean]


@torch.no_grad()
def decode_layers(
    path: str | Path,
    image: Image,
    *,
    mllm: MLLM | None = None,
    targets: Sequence[Target] | None = None,
    seed: int = 0,
) -> dict[str, Decoded]:
    """Let an image pass through a run's MLLM and decode what its probes predict, by target.

    Args:
        path: of the run's folder.
        image: RGB.
        mllm: instead of the one that the run names.
        targets: instead of those that the run names; with their heads.
        seed: of outputs that are drawn at random; the same for all layers, so that they differ by the prediction alone.

    Raises:
        InnerVisionError: the run is not trained or does not fit the models, or an expert has no head.
    """
    run = RunFolder(path)
    settings = run.settings()
    settings.dtype = settings.dtype or run.record().get("dtype")
    mllm = mllm or load_mllm(settings)
    targets = targets or load_experts(settings, mllm, head=True)
    banks = {
        target.name: ProbeBank.load(run.probes(target.name), mllm, target).to(mllm.device).eval() for target in targets
    }
    inputs = mllm.prepare([image], settings.prompt).to(mllm.device)
    predictions: dict[str, dict[int, Tensor]] = {name: {} for name in banks}

    def look(layer: int, states: Tensor, mask: Tensor) -> None:
        grid = inputs.places(layer, states.shape[1])
        for name, bank in banks.items():
            with autocast(mllm.device):
                predictions[name][layer] = bank(layer, states, mask, grid).float()  # (1, N, C)

    layers = next(iter(banks.values())).layers
    mllm.visit(inputs, look, layers, tokens=settings.tokens)
    found = {}
    for target in targets:
        context = target.context([image])
        features = [context.features, banks[target.name].mean[None], *predictions[target.name].values()]
        given = context.take([0] * len(features))
        expert, mean, *rest = target.decode(torch.cat(features), given, seeds=[seed] * len(features)).cpu()
        found[target.name] = Decoded(dict(zip(layers, rest, strict=True)), expert, mean)
    return found
