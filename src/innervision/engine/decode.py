"""What the experts' heads make of every layer's prediction for single images: to look at, not to score."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from innervision.engine.run import RunFolder
from innervision.engine.session import Session, memory_errors
from innervision.mllm import MLLM
from innervision.probes import ProbeBank
from innervision.targets.target import Target


@dataclass(frozen=True)
class Decoded:
    """One target's outputs (see `Target.decode`) for one image, on the CPU."""

    kind: str
    """Of the target."""
    layers: dict[int, Tensor]
    """Of each layer's prediction, in the order of the layers."""
    expert: Tensor
    """Of the expert's own features in the place of a prediction: the ceiling."""
    mean: Tensor | None
    """Of the mean feature of the training images: the floor; None where it is not known."""
    labels: Sequence[str] = ()
    """Names of the classes, where the outputs are scores of classes."""

    def all(self) -> list[Tensor]:
        """Give every output."""
        return [*self.layers.values(), self.expert, *([] if self.mean is None else [self.mean])]


def decode_layers(path: str | Path, image: Image, **options: Any) -> dict[str, Decoded]:
    """Decode what a run's probes predict of one image, by target; for the options and errors see `decode_images`."""
    return next(decode_images(path, [image], **options))


@torch.no_grad()
def decode_images(
    path: str | Path,
    images: Iterable[Image],
    *,
    mllm: MLLM | None = None,
    targets: Sequence[Target] | None = None,
    only: Sequence[str] | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
) -> Iterator[dict[str, Decoded]]:
    """Let images pass through a run's MLLM, one by one, and decode what its probes predict, by target.

    The predictions are those that the task of the target's kind scores: the MLLM sees an image once for each target,
    since the protocol may give each task inputs of its own. Models are loaded once for all images.

    Args:
        path: of the run's folder.
        images: RGB.
        mllm: instead of the one that the run names.
        targets: instead of those that the run names; with their heads.
        only: names of the targets to decode; by default all.
        device: by default the accelerator, where there is one.
        trust_remote_code: run model code that comes with the MLLM's checkpoint.
        seed: of outputs that are drawn at random; the same for all layers, so that they differ by the prediction alone.

    Raises:
        InnerVisionError: the run is not trained or does not fit the models, or an expert has no head.
    """
    run = RunFolder(path)
    settings = run.trained_settings()
    models = Session.load(
        settings,
        "",
        mllm=mllm,
        targets=targets,
        only=only,
        head=True,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    sessions: dict[str, Session] = {}
    banks: dict[str, ProbeBank] = {}
    with memory_errors("choose another device, such as cpu"):
        for target in models.targets:
            session = sessions[target.name] = Session(settings, models.mllm, [target], script=target.kind)
            bank = banks[target.name] = ProbeBank.load(run.probes(target.name))
            bank.check(session.mllm, target)
            session.place(bank).eval()
        for image in images:
            yield {name: _decode(sessions[name], bank, image, seed) for name, bank in banks.items()}


def _decode(session: Session, bank: ProbeBank, image: Image, seed: int) -> Decoded:
    [target] = session.targets
    inputs, pixels = session.prepare(image)
    context = target.context(pixels[target.name])
    device = context.features.device
    predictions: dict[int, Tensor] = {}

    def receive(name: str, layer: int, prediction: Tensor) -> None:
        predictions[layer] = prediction.to(device)  # (1, N, C)

    session.predict(inputs, {target.name: bank}, receive)
    means = [bank.mean[None].to(device)] if bank.knows_mean() else []
    features = torch.cat([context.features, *predictions.values(), *means])
    seeds = [seed] * len(features)
    outputs = target.decode(features, context.take([0] * len(features)), seeds=seeds)
    expert, *rest = (output.cpu() for output in outputs)
    mean = rest.pop() if means else None
    labels = getattr(target, "labels", ())
    return Decoded(target.kind, dict(zip(predictions, rest, strict=True)), expert, mean, labels)
