"""The frozen models of a run, loaded as its settings say."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from PIL.Image import Image

from innervision.config import TrainSettings
from innervision.data.loader import Batches, Truth
from innervision.data.sources import ImageSet
from innervision.mllm import MLLM
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
    return load_targets(specs, device=mllm.device, dtype=mllm.model.dtype, head=head)


def batches_of(
    images: ImageSet,
    order: Sequence[Sequence[int]],
    mllm: MLLM,
    prompt: str,
    targets: Sequence[Target],
    truth: Truth | None = None,
) -> Batches:
    """Give the batches that the MLLM and the experts of a run see, with what `truth` knows of their images."""
    preparers: Mapping[str, Callable] = {target.name: target.preparer for target in targets}
    return Batches(images, order, partial(_prepare, mllm.builder, prompt), preparers, truth)


def _prepare(builder: Callable, prompt: str, images: list[Image]) -> object:
    return builder(images, prompt)
