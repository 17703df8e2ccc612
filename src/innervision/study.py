"""The frozen models of a run, loaded as its settings say."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from PIL.Image import Image

from innervision.config import TrainSettings
from innervision.data.loader import Batches
from innervision.data.sources import ImageSet
from innervision.mllm import MLLM
from innervision.targets import load_targets
from innervision.targets.target import Target


def load_models(settings: TrainSettings, device: str | None = None) -> tuple[MLLM, list[Target]]:
    """Load the MLLM and the experts of a run.

    Args:
        settings: of the run.
        device: instead of the settings' own.

    Raises:
        InnerVisionError: one of them cannot be had.
    """
    dtype = getattr(torch, settings.dtype) if settings.dtype else None
    mllm = MLLM.load(
        settings.mllm,
        revision=settings.revision,
        dtype=dtype,
        device=device or settings.device,
        quantization=settings.quantization,
        random_weights={"none": False, "llm": True, "all": "all"}[settings.random_weights],  # type: ignore[arg-type]
        seed=settings.seed,
        trust_remote_code=settings.trust_remote_code,
    )
    targets = load_targets(settings.targets.split(","), device=mllm.device, dtype=mllm.model.dtype)
    return mllm, targets


def batches_of(
    images: ImageSet, order: Sequence[Sequence[int]], mllm: MLLM, prompt: str, targets: Sequence[Target]
) -> Batches:
    """Give the batches that the MLLM and the experts of a run see."""
    preparers: Mapping[str, Callable] = {target.name: target.preparer for target in targets}
    return Batches(images, order, partial(_prepare, mllm.builder, prompt), preparers)


def _prepare(builder: Callable, prompt: str, images: list[Image]) -> object:
    return builder(images, prompt)
