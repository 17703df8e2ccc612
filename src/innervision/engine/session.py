"""The frozen models of a run, loaded as its settings say."""

from collections.abc import Sequence

import torch

from innervision.config import TrainSettings
from innervision.data.loader import Batches, Truth
from innervision.data.sources import ImageSet
from innervision.mllm import MLLM
from innervision.original.protocol import PROTOCOLS
from innervision.targets import load_targets, parse_target
from innervision.targets.target import Target


def load_mllm(settings: TrainSettings, device: str | None = None) -> MLLM:
    """Load the MLLM of a run, on `device` instead of the settings' own if given.

    Raises:
        InnerVisionError: it cannot be had.
    """
    return MLLM.load(
        settings.mllm,
        revision=settings.revision,
        dtype=getattr(torch, settings.dtype) if settings.dtype else None,
        device=device or settings.device,
        quantization=settings.quantization,
        random_weights={"none": False, "llm": True, "all": "all"}[settings.random_weights],  # type: ignore[arg-type]
        seed=settings.seed,
        trust_remote_code=settings.trust_remote_code,
        template=settings.template,
    )


def load_experts(
    settings: TrainSettings, mllm: MLLM, *, only: Sequence[str] | None = None, head: bool = False
) -> list[Target]:
    """Load the experts of a run beside its MLLM, of all its targets or `only` some, with or without their heads.

    Raises:
        InnerVisionError: one of them cannot be had.
    """
    specs = [spec for spec in settings.targets.split(",") if only is None or parse_target(spec)[0] in only]
    targets = load_targets(specs, device=mllm.device, dtype=mllm.model.dtype, head=head)
    for target in targets:
        PROTOCOLS[settings.protocol].adopt(target)
    return targets


def batches_of(
    images: ImageSet,
    order: Sequence[Sequence[int]],
    mllm: MLLM,
    settings: TrainSettings,
    targets: Sequence[Target],
    truth: Truth | None = None,
    script: str = "train",
) -> Batches:
    """Give the batches that the MLLM and the experts of a run see.

    Args:
        images: all of them.
        order: for every batch the indices of its images.
        mllm: makes its inputs.
        settings: of the run.
        targets: make their pixels.
        truth: gives what is known of an image.
        script: what they are for: `train`, or the name of an evaluation.
    """
    protocol = PROTOCOLS[settings.protocol]
    prepare = protocol.inputs(mllm.builder, settings.prompt, script)
    preparers = {target.name: protocol.pixels(target.preparer, script) for target in targets}
    return Batches(images, order, prepare, preparers, truth)
